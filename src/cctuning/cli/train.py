"""`cctuning train --config recipe.yaml [--any-option value]`."""

from __future__ import annotations

from cctuning.cli.options import parse


def main(argv: list[str]) -> None:
    """Parse, train, say where everything lies."""
    from cctuning.connection import ConnectionConfig
    from cctuning.training import CCConfig
    from cctuning.training.options import RunOptions

    description = "Fine-tune a causal LM on rows with an English (or other) parallel of each prompt."
    options, connection, args = parse("cctuning train", description, (RunOptions, ConnectionConfig, CCConfig), argv)
    from cctuning.training.run import train

    trainer = train(options, connection, args)
    if trainer.is_world_process_zero():
        run = args.output_dir
        print(f"\nrun:        {run}\nmodel:      {run}/model")
        if connection.connection == "none":
            print(f"try it:     cctuning generate {run} --prompt '…'")
        elif connection.foldable:
            print(f"next:       cctuning export {run} --format fold --output DIR")
        else:
            print(f"next:       cctuning generate {run} --prompt '…' (this connection cannot be folded)")
