"""What each of two processes does in `test_two_processes.py`: two updates in each framework.

Started by torchrun, with the folder for the results; imported by nobody.
"""

import sys
from pathlib import Path

import torch


def in_transformers(folder, rank):
    import test_transformers as ours

    torch.manual_seed(0)
    model, data = ours.gpt2(3).double(), ours.examples("gpt2", 24)
    for kind, options in (("clean", {"explicit": 0.0, "implicit": 0.0}), ("both", {})):
        keeps = ours.Gradients()
        trainer = ours.trainer(
            model,
            data,
            folder / kind,
            options=options,
            more={"callbacks": [keeps]},
            learning_rate=0.0,
            logging_steps=1,
            seed=9,
            save_strategy="steps",
            save_steps=2,
        )
        trainer.train()
        torch.save((keeps.seen, trainer.state.log_history), folder / f"{kind}_{rank}.pt")


def in_lightning(folder, rank):
    import test_lightning as ours

    torch.set_default_dtype(torch.float64)
    ours.INPUTS = ours.INPUTS.double()
    options = {"devices": 2, "strategy": "ddp", "enable_checkpointing": False}
    _, watch = ours.fit(ours.page()(ours.network()), folder, epochs=1, **options)
    torch.save(watch.gradients, folder / f"lightning_{rank}.pt")
    torch.set_default_dtype(torch.float32)


def in_accelerate(folder, rank):
    import test_accelerate as ours

    names = ours.prepared() | {"folder": str(folder / "accelerate")}
    exec(ours.LOOP, names)
    exec(ours.SAVE, names)
    weights = [p.detach() for p in names["model"].parameters()]
    torch.save(weights, folder / f"accelerate_{rank}.pt")


def main():
    folder, rank = Path(sys.argv[1]), torch.distributed.get_rank()
    in_accelerate(folder, rank)
    in_transformers(folder, rank)
    in_lightning(folder, rank)
    torch.distributed.destroy_process_group()


if __name__ == "__main__":
    torch.set_num_threads(1)
    torch.distributed.init_process_group("gloo")
    main()
