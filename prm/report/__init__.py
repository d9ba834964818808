"""Tables, pictures and self-contained pages of every command. Without torch."""

from prm.report.audit import print_audit, write_audit
from prm.report.cold_start import print_cold_start
from prm.report.curves import Panel, print_curves, write_curves
from prm.report.evaluation import accuracy_picture, print_evaluation, print_pooled
from prm.report.experiments import print_experiments, write_experiments
from prm.report.page import markdown, save_picture, write_page
from prm.report.pictures import heat_pictures
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
    "heat_pictures",
    "markdown",
    "print_arms",
    "print_audit",
    "print_cold_start",
    "print_curves",
    "print_evaluation",
    "print_experiments",
    "print_pooled",
    "print_profile",
    "save_picture",
    "show",
    "table",
    "write_arms",
    "write_audit",
    "write_curves",
    "write_experiments",
    "write_page",
    "write_profile",
]
