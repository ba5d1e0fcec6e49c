"""Submodular reinforcement learning (work in progress)."""
from jaxkit.subrl.cells import *
from jaxkit.subrl.credit import *
from jaxkit.subrl.environments import *
from jaxkit.subrl.fields import *
from jaxkit.subrl.grids import *
from jaxkit.subrl.losses import *
from jaxkit.subrl.measurements import *
from jaxkit.subrl.policies import *
from jaxkit.subrl.rollouts import *
from jaxkit.subrl.subpo import *
from jaxkit.subrl.tables import *
from jaxkit.subrl.worlds import *
from jaxkit.subrl.planning import *
from jaxkit.subrl.trees import *
from jaxkit.subrl.curvature import *
