"""`recerase doctor`: is this installation able to work, and does the gate that it is used for block?

    checks.py    what is installed, what it can do, and where it may write: a `Check` each
    gate.py      planted models, whose verdicts are known, audited under the user's policy
    planted/     their weights and data, shipped; made by tests/doctor/planting.py

The one decision: nothing is taken on trust. A package counts when it was imported, torch and faiss when they gave a known answer, a
directory when something was published in it, and a gate when it stopped a model that must be stopped.
"""

from recerase.doctor.checks import Check, diagnose
from recerase.doctor.gate import Proof, prove_gate

__all__ = ["Check", "Proof", "diagnose", "prove_gate"]
