"""The forms of sparring by name."""

from __future__ import annotations

from typing import Literal

from sparface.attacks.disguise import Disguise
from sparface.attacks.made import Form
from sparface.attacks.occlusion import Occlusion
from sparface.attacks.perturbation import Perturbation

FormName = Literal["perturbation", "occlusion", "disguise"]
FORMS: dict[FormName, type[Form]] = {
    "perturbation": Perturbation,
    "occlusion": Occlusion,
    "disguise": Disguise,
}
