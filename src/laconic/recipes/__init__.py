"""One published system a file; `laconic.recipes()` lists their ids.

The package shares its name with that function, and Python puts a package into its parent's namespace when it is imported: so
the package can be called, and `laconic.recipes()` means the same before and after a recipe was used.
"""

import sys
from types import ModuleType


class _Listing(ModuleType):
    def __call__(self, domain: str | None = None) -> list[str]:
        """Ids of all recipes, or of those for one domain."""
        from ..core.registry import recipes

        return recipes(domain)


sys.modules[__name__].__class__ = _Listing
