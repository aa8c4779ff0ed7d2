"""Why a dataset will or will not teach in-context learning, before anything is trained."""

from ad_hf.diagnosis.inspection import Inspection, inspect_dataset
from ad_hf.diagnosis.report import describe, write_inspection

__all__ = ["Inspection", "describe", "inspect_dataset", "write_inspection"]
