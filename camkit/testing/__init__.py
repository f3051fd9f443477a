"""What authors of plugins and adapters test with.

`check_method` is the conformance kit for a method, `check_attack` the one for an attack, `check_metric` the one for a
metric, `check_engine` the one for an engine, `check_adapter` the one for an adapter. `vary_constants` gives an
untrained model weights that a map can be taken of. `Oracle` computes an explanation in float64 in the plainest way;
`assert_agrees` says whether a result equals it. `state` tells whether a model was left as it was.
"""

from camkit.testing.adapters import AdapterReport as AdapterReport
from camkit.testing.adapters import check_adapter as check_adapter
from camkit.testing.attacks import check_attack as check_attack
from camkit.testing.conformance import check_method as check_method
from camkit.testing.engines import check_engine as check_engine
from camkit.testing.equality import HALF_TOLERANCE as HALF_TOLERANCE
from camkit.testing.equality import HEATMAP_TOLERANCE as HEATMAP_TOLERANCE
from camkit.testing.equality import assert_agrees as assert_agrees
from camkit.testing.equality import assert_informative as assert_informative
from camkit.testing.equality import relative_error as relative_error
from camkit.testing.equality import tolerance as tolerance
from camkit.testing.equality import untied as untied
from camkit.testing.metrics import check_metric as check_metric
from camkit.testing.oracle import Oracle as Oracle
from camkit.testing.oracle import Reference as Reference
from camkit.testing.state import state as state
from camkit.testing.weights import vary_constants as vary_constants
