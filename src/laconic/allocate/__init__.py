"""Budgets: which setting each part gets, so that the total fits the budget and the loss is least.

Every allocator has one signature, `allocate(rates, distortions, budget, ...) -> choice`:

    rates, distortions: (n_parts, n_options) float64. What option j of part i costs, and loses, in *totals* of the part
        (bits or bytes of the whole layer, not bits per element). An option that is not there is inf in either table.
    budget: the chosen rates may sum to this much, in the same unit.
    choice: (n_parts,) int64, one option a part.

All promise `totals(...)[0] <= budget` up to the rounding of the sum (1e-12 of the budget), and raise `BadConfig` naming
the least feasible budget when nothing fits. The dual problem, least rate within a distortion budget (L-GreCo), is the
same call with the two tables exchanged.

    member               finds                                       when
    water_filling        optimum of fitted exponentials, snapped     losses that fall as 2^-sR
    lagrangian           optimum on the convex hulls, gap filled     the default: fast, within one step of optimal
    greedy               best next level, one at a time              embedded (progressive) codes
    dynamic_programme    the optimum                                 whole-number rates, small budgets
    integer_programme    the optimum                                 any rates; up to thousands of parts
    evolutionary         good choices for any objective              when losses of parts do not add up
"""

from .evolutionary import evolutionary
from .exact import dynamic_programme, integer_programme
from .greedy import greedy
from .lagrangian import lagrangian, lower_bound
from .table import totals
from .waterfill import reverse_water_filling, water_filling

__all__ = [
    "dynamic_programme",
    "evolutionary",
    "greedy",
    "integer_programme",
    "lagrangian",
    "lower_bound",
    "reverse_water_filling",
    "totals",
    "water_filling",
]
