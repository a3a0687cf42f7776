"""Studies: grids of experiments over seeds, tuned alike on validation data, as one table."""

from cl_ovq.studies.files import Study, find_study, load_study, only
from cl_ovq.studies.runs import run_study
from cl_ovq.studies.tables import StudyResult

__all__ = ["Study", "StudyResult", "find_study", "load_study", "only", "run_study"]
