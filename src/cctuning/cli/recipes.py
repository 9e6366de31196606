"""`cctuning recipes [NAME]`: the recipes that come with the package, or one of them in full."""

from __future__ import annotations

from cctuning.cli.options import Plain
from cctuning.cli.packaged import about, find, launchers, recipes


def main(argv: list[str]) -> None:
    """List them, or print one, to be copied and changed."""
    parser = Plain("cctuning recipes", description="Recipes for `cctuning train --config NAME`, and for several GPUs.")
    parser.add_argument("name", nargs="?", help="print this one (cctuning recipes NAME > mine.yaml, and change it)")
    args = parser.parse_args(argv)
    if args.name is not None:
        print(find(args.name, recipes() | launchers(), "name").read_text(encoding="utf-8"), end="")
        return
    print(
        "cctuning train --config NAME --data rows.jsonl --output_dir DIR; any option as a flag wins over the recipe\n"
    )
    for name, path in recipes().items():
        print(f"  {name:20} {about(path)}")
    print("\nSeveral GPUs: cctuning train --accelerate_config NAME --num_processes N …\n")
    for name, path in launchers().items():
        print(f"  {name:20} {about(path)}")
