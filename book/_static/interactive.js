// Figures that the reader can move. A notebook prints <figure class="dropreg-interactive" data-kind="…">
// (dropreg.book.interactive.interactive) with its numbers as JSON and a static picture or table. This script puts
// the moving figure in the picture's place; where it does not run, the picture stays.
"use strict";
(() => {
  const SVG = "http://www.w3.org/2000/svg";
  const WIDTH = 340; // of every drawing, in its own units: about the pixels of a phone

  // ---------------------------------------------------------------- elements
  function make(tag, attributes = {}, ...children) {
    const element = document.createElement(tag);
    for (const [name, value] of Object.entries(attributes)) element.setAttribute(name, value);
    element.append(...children);
    return element;
  }

  function shape(parent, tag, attributes, text = "") {
    const element = document.createElementNS(SVG, tag);
    for (const [name, value] of Object.entries(attributes)) element.setAttribute(name, value);
    element.textContent = text;
    parent.append(element);
    return element;
  }

  // The words under a drawing say the same, so the drawing itself is not read aloud.
  function drawing(figure, height) {
    const svg = shape(figure, "svg", { viewBox: `0 0 ${WIDTH} ${height}`, "aria-hidden": "true" });
    return () => {
      svg.replaceChildren();
      return svg;
    };
  }

  let ids = 0;
  function control(figure, label, input, show) {
    input.id = `dropreg-${++ids}`;
    const value = make("span", { class: "value", "aria-hidden": "true" });
    const update = () => {
      value.textContent = show ? show(input.value) : "";
    };
    input.addEventListener("input", update);
    figure.append(make("div", { class: "control" }, make("label", { for: input.id }, label), input, value));
    update();
    return update;
  }

  function slider(figure, label, { min, max, step, value }, show) {
    const input = make("input", { type: "range", min, max, step });
    input.value = value;
    const update = control(figure, label, input, show);
    return {
      get value() {
        return Number(input.value);
      },
      set value(to) {
        input.value = to;
        update();
      },
      on: (act) => input.addEventListener("input", act),
    };
  }

  function choice(figure, label, names) {
    const select = make("select", {}, ...names.map((name, i) => make("option", { value: i }, name)));
    control(figure, label, select);
    return {
      get value() {
        return Number(select.value);
      },
      on: (act) => select.addEventListener("change", act),
    };
  }

  // One step by one button; many, one after the other, by another one, for whom moving things do not trouble.
  // `advance` makes a step and says whether there are more.
  function player(figure, label, milliseconds, advance) {
    const once = make("button", { type: "button" }, label);
    const sign = make("span", { "aria-hidden": "true" }, "▶ ");
    const play = make("button", { type: "button", "aria-pressed": "false" }, sign, "Play");
    const calm = window.matchMedia("(prefers-reduced-motion: reduce)");
    let timer = 0;
    const turn = (on) => {
      clearInterval(timer);
      timer = on ? setInterval(step, milliseconds) : 0;
      play.setAttribute("aria-pressed", String(on));
      sign.textContent = on ? "❚❚ " : "▶ ";
      // Words that change twice a second are not read aloud; those on which it stops are.
      const says = figure.querySelector(".says");
      if (says) {
        says.setAttribute("aria-live", on ? "off" : "polite");
        if (!on) says.textContent = says.textContent;
      }
    };
    const stop = () => {
      if (timer) turn(false);
    };
    const step = () => {
      if (!advance()) stop();
    };
    const heed = () => {
      stop();
      play.hidden = calm.matches;
    };
    once.addEventListener("click", () => {
      stop();
      advance();
    });
    play.addEventListener("click", () => {
      if (timer) return stop();
      turn(true);
      step();
    });
    document.addEventListener("visibilitychange", () => {
      if (document.hidden) stop();
    });
    calm.addEventListener("change", heed);
    heed();
    figure.append(make("div", { class: "control" }, once, play));
    return stop;
  }

  function words(figure) {
    const line = make("p", { class: "says", "aria-live": "polite" });
    figure.append(line);
    return (text) => {
      line.textContent = text;
    };
  }

  // ---------------------------------------------------------------- numbers
  // Always the same draws (mulberry32), so that a page looks the same each time it is opened.
  function generator(seed) {
    let state = seed >>> 0;
    return () => {
      state = (state + 0x6d2b79f5) >>> 0;
      let z = state;
      z = Math.imul(z ^ (z >>> 15), z | 1);
      z ^= z + Math.imul(z ^ (z >>> 7), z | 61);
      return ((z ^ (z >>> 14)) >>> 0) / 4294967296;
    };
  }

  const fixed = (digits) => (value) => Number(value).toFixed(digits).replace("-", "−");
  const two = fixed(2);
  const sum = (values) => values.reduce((a, b) => a + b, 0);
  const spread = (values) => {
    const mean = sum(values) / values.length;
    return Math.sqrt(sum(values.map((v) => (v - mean) ** 2)) / values.length);
  };
  const scale = (from, to, low, high) => (value) => low + ((value - from) / (to - from)) * (high - low);

  function axis(svg, x, y, ticks, show, title) {
    const ends = ticks.map(x);
    shape(svg, "path", { class: "axis", d: `M${ends[0]} ${y}H${ends.at(-1)}` });
    for (const tick of ticks) {
      shape(svg, "path", { class: "axis", d: `M${x(tick)} ${y}v4` });
      shape(svg, "text", { x: x(tick), y: y + 16, class: "middle" }, show(tick));
    }
    shape(svg, "text", { x: WIDTH / 2, y: y + 32, class: "middle" }, title);
  }

  // ---------------------------------------------------------------- the figures
  const KINDS = {
    // data: {q, strength}, where the sliders begin
    "noise-law"(figure, data) {
      const q = slider(figure, "dropout probability q", { min: 0.05, max: 0.8, step: 0.05, value: data.q }, two);
      const strength = slider(figure, "strength ε", { min: 0, max: 1, step: 0.05, value: data.strength }, two);
      const clear = drawing(figure, 208);
      const say = words(figure);
      const x = scale(-1, 5, 14, WIDTH - 14);
      const height = scale(0, 1, 0, 120);
      const draw = () => {
        const v = q.value / (1 - q.value);
        const variance = strength.value ** 2 * v;
        const law = [[1 - strength.value, q.value, "dropped"], [1 + strength.value * v, 1 - q.value, "kept"]];
        const svg = clear();
        axis(svg, x, 172, [-1, 0, 1, 2, 3, 4, 5], (t) => fixed(0)(t), "factor 1 + εη");
        const deviation = Math.sqrt(variance);
        shape(svg, "path", { class: "line implicit", d: `M${x(1 - deviation)} 165H${x(1 + deviation)}` });
        shape(svg, "text", { x: WIDTH - 4, y: 14, class: "end" }, "line: mean ± one standard deviation");
        shape(svg, "path", { class: "none", d: `M${x(1)} 160l5 10h-10z` });
        law.forEach(([value, chance, name], i) => {
          const tall = height(chance);
          shape(svg, "rect", { class: "dropout", x: x(value) - 5, y: 158 - tall, width: 10, height: tall });
          // Where the two bars meet, their labels would, too: they stand to either side.
          const side = i === 0 ? { x: x(value) + 5, class: "end" } : { x: x(value) - 5 };
          shape(svg, "text", { ...side, y: 152 - tall }, `${name} ${two(chance)}`);
        });
        say(
          `The factor is ${two(law[0][0])} with probability ${two(law[0][1])}, and ${two(law[1][0])} with ` +
            `probability ${two(law[1][1])}. Mean 1.00; variance ε² q/(1−q) = ${two(variance)}, ` +
            `standard deviation ${two(deviation)}.`,
        );
      };
      [q, strength].forEach((each) => each.on(draw));
      draw();
    },

    // data: {q, sequences, steps, features, group, words}, with a letter for each row
    masks(figure, data) {
      const rows = data.sequences * data.steps;
      const laws = [
        ["independent", (r, c) => `${r},${c}`, "every entry has a draw of its own"],
        ["locked, by sequence", (r, c) => `${Math.floor(r / data.steps)},${c}`,
          "a feature is dropped at every step of a sequence, or at none"],
        ["shared by channel", (r, c) => `${r},${Math.floor(c / data.group)}`,
          `each row is an image, and the ${data.group} pixels of a channel go together`],
        ["weight rows, by word", (r) => data.words[r],
          "a dropped row of the embedding table takes its word away wherever it stands"],
      ];
      const law = choice(figure, "mask", laws.map(([name]) => name));
      const q = slider(figure, "dropout probability q", { min: 0, max: 0.9, step: 0.05, value: data.q }, two);
      let seed = 1;
      player(figure, "Next step", 700, () => {
        seed += 1;
        draw();
        return true;
      });
      const [left, gap, high] = [34, 6, 11];
      const clear = drawing(figure, rows * high + (data.sequences - 1) * gap + 24);
      const say = words(figure);
      const wide = (WIDTH - left) / data.features;
      const draw = () => {
        const [name, key, meaning] = laws[law.value];
        const random = generator(seed);
        const drawn = new Map();
        const kept = [];
        let dropped = 0;
        const svg = clear();
        for (let r = 0; r < rows; r += 1) {
          const y = r * high + Math.floor(r / data.steps) * gap;
          if (law.value === 3) shape(svg, "text", { x: left - 12, y: y + 9, class: "small" }, data.words[r]);
          if (r % data.steps === 0) {
            shape(svg, "text", { class: "small middle", transform: `translate(12 ${y + (data.steps * high) / 2}) rotate(-90)` },
              law.value === 2 ? "images" : `sequence ${r / data.steps + 1}`);
          }
          for (let c = 0; c < data.features; c += 1) {
            const group = key(r, c);
            if (!drawn.has(group)) drawn.set(group, random());
            if (drawn.get(group) < q.value) dropped += 1;
            else kept.push(`M${left + c * wide} ${y}h${wide - 1}v${high - 1}h${1 - wide}z`);
          }
        }
        shape(svg, "path", { class: "dropout", d: kept.join("") });
        shape(svg, "text", { x: (left + WIDTH) / 2, y: rows * high + data.sequences * gap + 10, class: "middle" },
          "features (filled: kept)");
        const entries = rows * data.features;
        say(
          `Step ${seed}. ${name}: ${meaning}. ${drawn.size} draws decide over ${entries} entries. ` +
            `Dropped: ${two(dropped / entries)} of them; expected ${two(q.value)}.`,
        );
      };
      [law, q].forEach((each) => each.on(draw));
      draw();
    },

    // data: {draws}, projected gradient noise of single masks, with mean 0; {largest} k
    "masks-k"(figure, data) {
      const k = slider(figure, "masks a step, k", { min: 1, max: data.largest, step: 1, value: 1 }, fixed(0));
      const clear = drawing(figure, 200);
      const say = words(figure);
      const single = spread(data.draws);
      const [bins, means] = [33, 2000];
      const reach = 3.3 * single;
      const x = scale(-3.3, 3.3, 8, WIDTH - 8);
      const draw = () => {
        const random = generator(7);
        const pick = () => data.draws[Math.floor(random() * data.draws.length)];
        const averages = Array.from({ length: means }, () => sum(Array.from({ length: k.value }, pick)) / k.value);
        const counts = new Array(bins).fill(0);
        for (const value of averages) {
          const bin = Math.floor(((value + reach) / (2 * reach)) * bins);
          counts[Math.min(bins - 1, Math.max(0, bin))] += 1;
        }
        const svg = clear();
        const wide = (WIDTH - 16) / bins;
        const tallest = Math.max(...counts);
        counts.forEach((count, i) => {
          const tall = (count / tallest) * 130;
          shape(svg, "rect", { class: "implicit", x: 8 + i * wide, y: 160 - tall, width: wide - 1, height: tall });
        });
        axis(svg, x, 162, [-3, -2, -1, 0, 1, 2, 3], fixed(0), "noise, in standard deviations at k = 1");
        const measured = spread(averages) / single;
        const expected = 1 / Math.sqrt(k.value);
        shape(svg, "path", { class: "line none", d: `M${x(-expected)} 150V10M${x(expected)} 150V10` });
        shape(svg, "text", { x: x(expected) + 5, y: 20 }, `1/√k = ${two(expected)}`);
        say(
          `k = ${k.value}: the noise of the mean gradient spreads ${two(measured)} times as wide as with one mask; ` +
            `1/√k = ${two(expected)} (the upright lines).`,
        );
      };
      k.on(draw);
      draw();
    },

    // data: {strengths, steps, mean, half}: curves [explicit][implicit][step]; {start}, one of them
    strengths(figure, data) {
      const [min, max, step] = [data.strengths[0], data.strengths.at(-1), data.strengths[1] - data.strengths[0]];
      const dial = (label, value) => slider(figure, label, { min, max, step, value }, String);
      const explicit = dial("explicit strength λₑ (objective)", data.start[0]);
      const implicit = dial("implicit strength λᵢ (noise)", data.start[1]);
      const clear = drawing(figure, 250);
      const say = words(figure);
      const at = (value) => data.strengths.indexOf(value);
      const x = scale(data.steps[0], data.steps.at(-1), 34, WIDTH - 60);
      const [low, high] = [0.5, 20];
      const log = scale(Math.log(low), Math.log(high), 210, 10);
      const y = (value) => log(Math.log(Math.min(high, Math.max(low, value))));
      const path = (values) => values.map((v, i) => `${i ? "L" : "M"}${x(data.steps[i])} ${y(v).toFixed(1)}`).join("");
      const draw = () => {
        const svg = clear();
        for (const tick of [0.5, 1, 2, 5, 10, 20]) {
          shape(svg, "path", { class: "grid", d: `M34 ${y(tick)}H${WIDTH - 60}` });
          shape(svg, "text", { x: 29, y: y(tick) + 4, class: "end" }, tick);
        }
        axis(svg, x, 212, data.steps.filter((s) => s % 200 === 0), fixed(0), "training step (left: held-out loss in nats)");
        const [e, i] = [at(explicit.value), at(implicit.value)];
        const chosen = { name: "yours", colour: "both", e, i };
        const known = [
          { name: "none", colour: "none", e: at(0), i: at(0) },
          { name: "dropout", colour: "dropout", e: at(1), i: at(1) },
        ];
        const same = known.find((line) => line.e === e && line.i === i);
        const lines = same ? known : [...known, chosen];
        const ends = [];
        for (const { name, colour, e, i } of lines) {
          const [mean, half] = [data.mean[e][i], data.half[e][i]];
          const upper = mean.map((m, s) => m + half[s]);
          const lower = mean.map((m, s) => m - half[s]);
          const back = lower.map((v, s) => `L${x(data.steps[s])} ${y(v).toFixed(1)}`).reverse().join("");
          shape(svg, "path", { class: `band ${colour}`, d: `${path(upper)}${back}z` });
          shape(svg, "path", { class: `line ${colour}`, d: path(mean) });
          ends.push([y(mean.at(-1)), name, colour]);
        }
        let place = Infinity; // labels from the lowest curve up, apart by a line at least
        for (const [height, name, colour] of ends.sort((a, b) => b[0] - a[0])) {
          place = Math.min(height, place - 14);
          shape(svg, "text", { x: WIDTH - 56, y: place + 4, class: colour }, name);
        }
        const told = ({ e, i }) => `${two(data.mean[e][i].at(-1))} ± ${two(data.half[e][i].at(-1))}`;
        say(
          `λₑ = ${explicit.value}, λᵢ = ${implicit.value}${same ? ` (${same.name})` : ""}: after ${data.steps.at(-1)} steps the ` +
            `held-out loss is ${told(chosen)} nats. None: ${told(known[0])}; dropout: ${told(known[1])}.`,
        );
      };
      [explicit, implicit].forEach((each) => each.on(draw));
      draw();
    },

    // data: {steps, x, truth, points, curves, errors}: points [[x, y], …]; for "none" and "dropout" a curve over x at
    // each step, and what it is off by, {seen, true}: at the points and over all x; {start}, one of the steps
    fit(figure, data) {
      const last = data.steps.length - 1;
      const step = slider(figure, "training step", { min: 0, max: last, step: 1, value: data.steps.indexOf(data.start) },
        (i) => data.steps[i]);
      const stop = player(figure, "Next step", 350, () => {
        step.value = step.value === last ? 0 : step.value + 1;
        draw();
        return step.value < last;
      });
      const clear = drawing(figure, 236);
      const say = words(figure);
      const x = scale(data.x[0], data.x.at(-1), 8, WIDTH - 8);
      const heights = data.points.map(([, height]) => height);
      const [low, high] = [Math.min(...heights), Math.max(...heights)];
      const room = 0.12 * (high - low);
      const up = scale(low - room, high + room, 190, 24);
      const y = (value) => Math.min(200, Math.max(20, up(value))).toFixed(1);
      const path = (values) => values.map((v, i) => `${i ? "L" : "M"}${x(data.x[i]).toFixed(1)} ${y(v)}`).join("");
      const names = { none: "without dropout", dropout: "with dropout" };
      const draw = () => {
        const at = step.value;
        const svg = clear();
        shape(svg, "path", { class: "axis", d: path(data.truth), "stroke-dasharray": "2 4" });
        for (const name of Object.keys(names)) {
          shape(svg, "path", { class: `line ${name}`, d: path(data.curves[name][at]) });
        }
        for (const [where, height] of data.points) {
          shape(svg, "circle", { cx: x(where), cy: y(height), r: 3.5, fill: "currentColor" });
        }
        shape(svg, "text", { x: 8, y: 12, class: "none" }, names.none);
        shape(svg, "text", { x: 128, y: 12, class: "dropout" }, names.dropout);
        shape(svg, "text", { x: WIDTH - 8, y: 12, class: "end" }, "dotted: truth");
        axis(svg, x, 204, [data.x[0], (data.x[0] + data.x.at(-1)) / 2, data.x.at(-1)], fixed(0), "x");
        const off = Object.keys(names).map((name) =>
          `${names[name]} ${two(data.errors[name].seen[at])} at the points and ${two(data.errors[name].true[at])} from the truth`);
        say(`After ${data.steps[at]} steps the curve is off by (root mean square) ${off.join("; ")}.`);
      };
      step.on(() => {
        stop();
        draw();
      });
      draw();
    },

    // data: {layers, q}: units of each layer, inputs and outputs too; where the slider begins
    thinned(figure, data) {
      const q = slider(figure, "dropout probability q", { min: 0, max: 0.9, step: 0.05, value: data.q }, two);
      let mask = 1;
      player(figure, "Next mask", 700, () => {
        mask += 1;
        draw();
        return true;
      });
      const clear = drawing(figure, 214);
      const say = words(figure);
      const last = data.layers.length - 1;
      const x = scale(0, last, 30, WIDTH - 30);
      const y = (layer, unit) => 96 + (unit - (data.layers[layer] - 1) / 2) * 40;
      const hidden = sum(data.layers.slice(1, last));
      const draw = () => {
        const random = generator(mask);
        // A unit keeps its draw when q moves: it goes when q has come to it.
        const here = data.layers.map((units, layer) =>
          Array.from({ length: units }, () => layer === 0 || layer === last || random() >= q.value));
        const svg = clear();
        let weights = 0;
        const lines = { there: [], gone: [] };
        for (let layer = 0; layer < last; layer += 1) {
          here[layer].forEach((from, i) =>
            here[layer + 1].forEach((to, j) => {
              weights += from && to;
              lines[from && to ? "there" : "gone"].push(`M${x(layer)} ${y(layer, i)}L${x(layer + 1)} ${y(layer + 1, j)}`);
            }));
        }
        shape(svg, "path", { class: "grid", d: lines.gone.join(""), "stroke-dasharray": "2 4" });
        shape(svg, "path", { class: "line dropout", d: lines.there.join(""), style: "stroke-width: 1.2" });
        here.forEach((units, layer) =>
          units.forEach((kept, unit) => {
            const at = { cx: x(layer), cy: y(layer, unit), r: 11 };
            if (kept) shape(svg, "circle", { ...at, class: "dropout", style: "fill: var(--colour)" });
            else shape(svg, "circle", { ...at, class: "grid", style: "fill: var(--pst-color-background)", "stroke-dasharray": "2 3" });
          }));
        ["inputs", ...Array(last - 1).fill("hidden"), "outputs"].forEach((name, layer) =>
          shape(svg, "text", { x: x(layer), y: 208, class: "middle" }, name));
        const kept = sum(here.slice(1, last).map((units) => units.filter(Boolean).length));
        const chance = (1 - q.value) ** kept * q.value ** (hidden - kept);
        say(
          `Mask ${mask} keeps ${kept} of ${hidden} hidden units and ${weights} connections: one of ${2 ** hidden} thinned networks, ` +
            `which comes with probability ${chance.toFixed(4)}. ` +
            `Whatever is kept is multiplied by 1/(1−q) = ${two(1 / (1 - q.value))}.`,
        );
      };
      q.on(draw);
      draw();
    },

    // data: {answers, start, q, alpha, k, steps}: two answers; [u, w]; where the sliders begin; the last step
    "two-weights"(figure, data) {
      const q = slider(figure, "dropout probability q", { min: 0.1, max: 0.6, step: 0.05, value: data.q }, two);
      const alpha = slider(figure, "step size α", { min: 0.005, max: 0.03, step: 0.005, value: data.alpha }, fixed(3));
      const k = slider(figure, "masks a step, k", { min: 1, max: 16, step: 1, value: data.k }, fixed(0));
      const start = slider(figure, "start, u (w is 1)", { min: 0.4, max: 2.4, step: 0.1, value: data.start[0] }, fixed(1));
      const looks = 120;
      const step = slider(figure, "step", { min: 0, max: looks, step: 1, value: looks }, (i) => (i * data.steps) / looks);
      const stop = player(figure, "A few steps", 80, () => {
        step.value = step.value === looks ? 0 : step.value + 1;
        draw();
        return step.value < looks;
      });
      const clear = drawing(figure, 292);
      const say = words(figure);
      const x = scale(0, 2.5, 30, WIDTH - 30);
      const y = scale(0, 1.8, 250, 26);
      const [first, second] = data.answers;
      const mean = (first + second) / 2;
      const names = { none: "none", explicit: "explicit only", implicit: "noise only", dropout: "dropout" };
      // The slope in the product u·w; every rule steps along it.
      const walk = (rule) => {
        const random = generator(5);
        const v = q.value / (1 - q.value);
        let [u, w] = [start.value, data.start[1]];
        const path = [[u, w]];
        for (let t = 1; t <= data.steps; t += 1) {
          const p = u * w;
          const goal = (1 + v) * p - mean;
          let slope = rule === "none" ? p - mean : goal;
          if (rule === "implicit" || rule === "dropout") {
            let masked = 0;
            for (let i = 0; i < k.value; i += 1) {
              for (const answer of data.answers) {
                const factor = random() < q.value ? 0 : 1 + v;
                masked += (factor * (p * factor - answer)) / (2 * k.value);
              }
            }
            slope = rule === "dropout" ? masked : p - mean + masked - goal;
          }
          [u, w] = [u - alpha.value * slope * w, w - alpha.value * slope * u];
          if (t % (data.steps / looks) === 0) path.push([u, w]);
        }
        return path;
      };
      let paths = {};
      const train = () => {
        paths = Object.fromEntries(Object.keys(names).map((rule) => [rule, walk(rule)]));
        draw();
      };
      const inside = ([u, w]) => `${Math.min(x(2.5), Math.max(x(0), x(u))).toFixed(1)} ${Math.min(y(0), Math.max(y(1.8), y(w))).toFixed(1)}`;
      const line = (points) => points.map((point, i) => `${i ? "L" : "M"}${inside(point)}`).join("");
      const draw = () => {
        const svg = clear();
        const valley = (product) => line(Array.from({ length: 60 }, (_, i) => 0.06 + (i * 2.44) / 59)
          .map((u) => [u, product / u]).filter(([, w]) => w <= 1.8));
        shape(svg, "path", { class: "axis", d: `M${x(0)} ${y(1.8)}V${y(0)}` });
        shape(svg, "path", { class: "axis", d: `M${inside([0, 0])}L${inside([1.8, 1.8])}`, "stroke-dasharray": "2 4" });
        shape(svg, "path", { class: "line none", d: valley(mean), style: "stroke-width: 7; opacity: .25" });
        shape(svg, "path", { class: "line explicit", d: valley((1 - q.value) * mean), style: "stroke-width: 7; opacity: .3" });
        axis(svg, x, 252, [0, 0.5, 1, 1.5, 2, 2.5], fixed(1), "u (upwards: w, to 1.8; dotted: u = w)");
        for (const rule of Object.keys(names)) {
          const path = paths[rule].slice(0, step.value + 1);
          shape(svg, "path", { class: `line ${rule}`, d: line(path), style: "stroke-width: 1.3" });
          const [cx, cy] = inside(path.at(-1)).split(" ");
          shape(svg, "circle", { class: rule, cx, cy, r: 5, style: "fill: var(--colour)" });
        }
        let at = 8;
        for (const [rule, name] of Object.entries(names)) {
          shape(svg, "circle", { class: rule, cx: at + 4, cy: 8, r: 5, style: "fill: var(--colour)" });
          shape(svg, "text", { x: at + 12, y: 12 }, name);
          at += 32 + 6.4 * name.length;
        }
        const left = (rule) => {
          const [u, w] = paths[rule][step.value];
          return `${names[rule]} ${two((u * u - w * w) / (start.value ** 2 - data.start[1] ** 2 || 1))}`;
        };
        const spread = (first - second) ** 2 / 4;
        const rate = (alpha.value ** 2 * (q.value / (1 - q.value)) * spread) / (2 * k.value);
        say(
          `From u = ${fixed(1)(start.value)}, w = 1: after ${(step.value * data.steps) / looks} steps the imbalance u² − w², over that of the start, is ` +
            `${Object.keys(names).map(left).join(", ")}. On its floor dropout should lose ${(1e4 * rate).toFixed(2)} in 10,000 of it a step.`,
        );
      };
      [q, alpha, k, start].forEach((each) => each.on(() => {
        stop();
        train();
      }));
      step.on(() => {
        stop();
        draw();
      });
      train();
    },

    // data: {p}, the three probabilities at the beginning
    simplex(figure, data) {
      let p = [...data.p];
      const moves = [
        ["1 against 2: (1, −1, 0)", [1, -1, 0]],
        ["1 against 3: (1, 0, −1)", [1, 0, -1]],
        ["2 against 3: (0, 1, −1)", [0, 1, -1]],
        ["class 1 alone: (1, 0, 0)", [1, 0, 0]],
        ["all together: (1, 1, 1)", [1, 1, 1]],
      ];
      const sliders = p.map((value, c) =>
        slider(figure, `probability of class ${c + 1}`, { min: 0, max: 1, step: 0.01, value }, two));
      const move = choice(figure, "movement t of the logits", moves.map(([name]) => name));
      const corners = [[24, 150], [174, 150], [99, 20]];
      const svg = drawing(figure, 330)();
      const triangle = shape(svg, "path", { class: "triangle", d: `M${corners.map((c) => c.join(" ")).join("L")}z` });
      corners.forEach(([x, y], c) =>
        shape(svg, "text", { x, y: c === 2 ? y - 7 : y + 16, class: "middle" }, `certain: ${c + 1}`));
      const handle = shape(svg, "circle", { class: "handle", r: 9 });
      const rest = shape(svg, "g", {});
      const say = words(figure);
      const draw = () => {
        const position = [0, 1].map((k) => sum(p.map((value, c) => value * corners[c][k])));
        handle.setAttribute("cx", position[0]);
        handle.setAttribute("cy", position[1]);
        rest.replaceChildren();
        const H = p.map((a, i) => p.map((b, j) => (i === j ? a : 0) - a * b));
        shape(rest, "text", { x: 268, y: 14, class: "middle" }, "p(1 − p)");
        p.forEach((value, c) => {
          const tall = value * (1 - value) * 4 * 100;
          const x = 222 + c * 34;
          shape(rest, "rect", { class: "explicit", x, y: 150 - tall, width: 24, height: tall });
          shape(rest, "text", { x: x + 12, y: 144 - tall, class: "middle" }, two(H[c][c]));
          shape(rest, "text", { x: x + 12, y: 166, class: "middle" }, c + 1);
        });
        shape(rest, "path", { class: "axis", d: "M216 150H320" });
        shape(rest, "text", { x: 84, y: 245 }, "diag(p) − ppᵀ");
        H.forEach((row, i) =>
          row.forEach((value, j) => {
            const [x, y] = [186 + j * 50, 190 + i * 34];
            const fill = value < 0 ? "implicit" : "explicit";
            shape(rest, "rect", { class: fill, x, y, width: 48, height: 32, "fill-opacity": Math.min(1, 3 * Math.abs(value)) * 0.5 });
            shape(rest, "text", { x: x + 24, y: y + 20, class: "middle" }, two(value));
          }));
        const [name, t] = moves[move.value];
        const value = sum(H.map((row, i) => t[i] * sum(row.map((h, j) => h * t[j]))));
        shape(rest, "text", { x: WIDTH / 2, y: 318, class: "middle strong" }, `tᵀ H t = ${two(Math.abs(value))}`);
        say(
          `p = (${p.map(two).join(", ")}). Weights p(1 − p): ${H.map((row, i) => two(row[i])).join(", ")}. ` +
            `Off the diagonal: 1 and 2 ${two(H[0][1])}, 1 and 3 ${two(H[0][2])}, 2 and 3 ${two(H[1][2])}. ` +
            `Movement ${name}: the variance tᵀ H t is ${two(Math.abs(value))}.`,
        );
      };
      const show = () => {
        sliders.forEach((each, c) => {
          each.value = p[c];
        });
        draw();
      };
      // One probability moves, the others share what is left as they did before.
      sliders.forEach((each, c) =>
        each.on(() => {
          const others = 1 - p[c];
          const left = 1 - each.value;
          p = p.map((value, i) => (i === c ? each.value : others > 1e-9 ? (value / others) * left : left / 2));
          show();
        }));
      move.on(draw);
      const drag = (event) => {
        const to = new DOMPoint(event.clientX, event.clientY).matrixTransform(svg.getScreenCTM().inverse());
        const third = (150 - to.y) / 130;
        const second = (to.x - 24 - third * 75) / 150;
        const raw = [1 - second - third, second, third].map((value) => Math.max(0, value));
        p = raw.map((value) => value / sum(raw));
        show();
      };
      for (const element of [triangle, handle]) {
        element.addEventListener("pointerdown", (event) => {
          handle.setPointerCapture(event.pointerId);
          drag(event);
        });
        // A finger here moves the point, not the page: browsers heed `touch-action` on no part of an SVG.
        element.addEventListener("touchstart", (event) => event.preventDefault(), { passive: false });
      }
      handle.addEventListener("pointermove", (event) => {
        if (handle.hasPointerCapture(event.pointerId)) drag(event);
      });
      draw();
    },
  };

  // ---------------------------------------------------------------- begin
  for (const figure of document.querySelectorAll("figure.dropreg-interactive")) {
    const upgraded = make("div", { class: "moving" });
    figure.append(upgraded); // a drawing needs its place in the page to know its size
    KINDS[figure.dataset.kind](upgraded, JSON.parse(figure.querySelector("script").textContent));
    figure.querySelector(".fallback").hidden = true;
  }
})();
