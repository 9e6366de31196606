"""`cctuning recipes [NAME]`: list the recipes in the package, or print one."""

from __future__ import annotations

from cctuning.cli.options import Plain
from cctuning.cli.recipe_files import accelerate_configs, find, recipes, summary


def main(argv: list[str]) -> None:
    """List the recipes and accelerate configurations, or print one of them."""
    description = "List the recipes and accelerate configurations in the package, or print one."
    parser = Plain("cctuning recipes", description=description)
    parser.add_argument("name", nargs="?", help="print this one, to change a copy: cctuning recipes NAME > mine.yaml")
    args = parser.parse_args(argv)
    if args.name is not None:
        print(find(args.name, recipes() | accelerate_configs(), "name").read_text(encoding="utf-8"), end="")
        return
    print("cctuning train --config NAME --data rows.jsonl --parallel pairs.tsv --output_dir DIR")
    print("Flags override the recipe.\n")
    for name, path in recipes().items():
        print(f"  {name:20} {summary(path)}")
    print("\nSeveral GPUs: cctuning train --accelerate_config NAME --num_processes N …\n")
    for name, path in accelerate_configs().items():
        print(f"  {name:20} {summary(path)}")
