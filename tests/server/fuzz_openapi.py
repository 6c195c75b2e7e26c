"""``python -m tests.server.fuzz_openapi [EXAMPLES]``: ask everything that the document allows."""

from __future__ import annotations

import sys

from tests.server.openapi_support import Target, operations, search


def main(words: list[str]) -> int:
    """Search; 0 if nothing was found."""
    found = 0
    with Target() as target:
        wanted = int([*words, "100"][0])
        for name, (operation, examples) in operations(target, examples=wanted).items():
            try:
                search(target, operation, examples)
                print("ok", name)
            except Exception as error:
                found += 1
                print("FOUND", name, error, *getattr(error, "__notes__", []), sep="\n")
    return min(found, 1)


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
