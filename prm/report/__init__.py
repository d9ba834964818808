"""Tables, pictures and self-contained pages of every command. Imports no torch, and each report on first use."""

from typing import TYPE_CHECKING

from prm.io.lazy import on_first_use

if TYPE_CHECKING:
    from prm.report.audit import print_audit, write_audit
    from prm.report.cold_start import print_cold_start, write_cold_start
    from prm.report.curves import Panel, print_curves, write_curves
    from prm.report.drawing import save_picture
    from prm.report.evaluation import accuracy_picture, print_evaluation, print_pooled
    from prm.report.evaluation_page import write_evaluation
    from prm.report.experiments import print_experiments, write_experiments
    from prm.report.model_comparison import print_model_comparison, write_model_comparison
    from prm.report.page import markdown, write_page
    from prm.report.pictures import heat_picture
    from prm.report.policy_comparison import ArmPanel, ArmPoint, LengthPanel, Sample, print_arms, write_arms
    from prm.report.profile import print_profile, write_profile
    from prm.report.terminal import show, table

__all__ = [
    "ArmPanel",
    "ArmPoint",
    "LengthPanel",
    "Panel",
    "Sample",
    "accuracy_picture",
    "heat_picture",
    "markdown",
    "print_arms",
    "print_audit",
    "print_cold_start",
    "print_curves",
    "print_evaluation",
    "print_experiments",
    "print_model_comparison",
    "print_pooled",
    "print_profile",
    "save_picture",
    "show",
    "table",
    "write_arms",
    "write_audit",
    "write_cold_start",
    "write_curves",
    "write_evaluation",
    "write_experiments",
    "write_model_comparison",
    "write_page",
    "write_profile",
]

_MODULES = {
    "ArmPanel": "prm.report.policy_comparison",
    "ArmPoint": "prm.report.policy_comparison",
    "LengthPanel": "prm.report.policy_comparison",
    "Panel": "prm.report.curves",
    "Sample": "prm.report.policy_comparison",
    "accuracy_picture": "prm.report.evaluation",
    "heat_picture": "prm.report.pictures",
    "markdown": "prm.report.page",
    "print_arms": "prm.report.policy_comparison",
    "print_audit": "prm.report.audit",
    "print_cold_start": "prm.report.cold_start",
    "print_curves": "prm.report.curves",
    "print_evaluation": "prm.report.evaluation",
    "print_experiments": "prm.report.experiments",
    "print_model_comparison": "prm.report.model_comparison",
    "print_pooled": "prm.report.evaluation",
    "print_profile": "prm.report.profile",
    "save_picture": "prm.report.drawing",
    "show": "prm.report.terminal",
    "table": "prm.report.terminal",
    "write_arms": "prm.report.policy_comparison",
    "write_audit": "prm.report.audit",
    "write_cold_start": "prm.report.cold_start",
    "write_curves": "prm.report.curves",
    "write_evaluation": "prm.report.evaluation_page",
    "write_experiments": "prm.report.experiments",
    "write_model_comparison": "prm.report.model_comparison",
    "write_page": "prm.report.page",
    "write_profile": "prm.report.profile",
}

__getattr__, __dir__ = on_first_use(__name__, _MODULES)
