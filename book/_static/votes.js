// Votes: the reader chooses before the page says what came out. A vote stands in the page as a list of options,
// its outcome as <p class="dropreg-outcome" data-option="what came out">, without an option where the runs do not
// decide. What lies between the two is hidden until the reader has chosen, or asks to see it. The choice stays in
// this browser. Where this script does not run, and on paper, nothing is hidden.
"use strict";
(() => {
  const key = (name) => `dropreg-vote:${location.pathname}:${name}`;
  const store = {
    // A browser may forbid to keep anything.
    get(name) {
      try {
        return localStorage.getItem(key(name));
      } catch {
        return null;
      }
    },
    set(name, choice) {
      try {
        if (choice === null) localStorage.removeItem(key(name));
        else localStorage.setItem(key(name), choice);
      } catch {}
    },
  };

  function make(tag, attributes, text = "") {
    const element = document.createElement(tag);
    for (const [name, value] of Object.entries(attributes)) element.setAttribute(name, value);
    element.textContent = text;
    return element;
  }

  // What stands between a vote and its outcome, that included: they are in one section.
  function between(vote) {
    const found = [];
    for (let next = vote.nextElementSibling; next; next = next.nextElementSibling) {
      found.push(next);
      const outcome = next.matches(".dropreg-outcome") ? next : next.querySelector(".dropreg-outcome");
      if (outcome) return { found, outcome };
    }
    throw new Error(`no outcome of the vote ${vote.dataset.name}`);
  }

  function begin(vote) {
    const { found, outcome } = between(vote);
    const { name } = vote.dataset;
    const list = vote.querySelector("ul");
    const options = [...list.children].map((item) => item.textContent);
    const group = make("div", { class: "options", role: "group", "aria-label": "Your vote" });
    const buttons = options.map((option) => make("button", { type: "button", "aria-pressed": "false" }, option));
    const rest = make("p", { class: "rest" });
    const without = make("button", { type: "button", class: "plain" }, "Show the result without a vote");
    const again = make("button", { type: "button", class: "plain" }, "Take the vote back");
    const says = make("p", { class: "says", role: "status" });
    rest.append(without, again);
    group.append(...buttons);
    list.replaceWith(group);
    vote.append(rest, says);

    const show = (yes) => {
      for (const element of found) {
        // Found by the browser's search all the same, where the browser knows how.
        if (yes) element.removeAttribute("hidden");
        else element.setAttribute("hidden", "until-found");
      }
      without.hidden = yes;
    };
    const choose = (choice) => {
      buttons.forEach((button) => button.setAttribute("aria-pressed", String(button.textContent === choice)));
      again.hidden = choice === null;
      show(choice !== null);
      if (choice === null) says.textContent = "";
      else if (outcome.dataset.option === undefined) says.textContent = `You chose “${choice}”. ${outcome.textContent}`;
      else {
        const same = outcome.dataset.option === choice ? "Just so." : "It came out otherwise.";
        says.textContent = `You chose “${choice}”. ${same} ${outcome.textContent}`;
      }
    };
    buttons.forEach((button) =>
      button.addEventListener("click", () => {
        store.set(name, button.textContent);
        choose(button.textContent);
      }));
    without.addEventListener("click", () => show(true));
    again.addEventListener("click", () => {
      store.set(name, null);
      choose(null);
      buttons[0].focus();
    });
    for (const element of found) element.addEventListener("beforematch", () => show(true));
    const kept = store.get(name);
    choose(options.includes(kept) ? kept : null);

    const asked = () => {
      const target = location.hash && document.getElementById(decodeURIComponent(location.hash.slice(1)));
      if (target && found.some((element) => element.contains(target))) {
        show(true);
        target.scrollIntoView();
      }
    };
    asked();
    addEventListener("hashchange", asked);
  }

  document.querySelectorAll(".dropreg-vote").forEach(begin);
})();
