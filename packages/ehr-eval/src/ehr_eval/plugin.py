"""ehr-eval's components and their settings. Nothing heavy is imported here."""

from collections.abc import Iterator

from ehr_core import Component, hookimpl
from ehr_core.outcomes import BINARY, MULTICLASS, MULTILABEL, REGRESSION, SURVIVAL

from ehr_eval.settings import (
    AccuracyConfig,
    ApplyConfig,
    AuprcConfig,
    AurocConfig,
    BenchmarkConfig,
    BrierConfig,
    CIndexConfig,
    CoxConfig,
    EvaluateConfig,
    F1Config,
    FitConfig,
    LabelConfig,
    LinearConfig,
    LogisticConfig,
    LogLossConfig,
    MacroAurocConfig,
    MacroF1Config,
    MaeConfig,
    MicroAurocConfig,
    PredictConfig,
    R2Config,
    ReportConfig,
    RmseConfig,
)
from ehr_eval.task_settings import (
    InHospitalMortalityConfig,
    LengthOfStayClassConfig,
    LengthOfStayConfig,
    NextDiagnosesConfig,
    Readmission30dConfig,
    TimeToDeathConfig,
)


@hookimpl
def ehr_tasks() -> Iterator[Component]:
    yield Component(
        name="in_hospital_mortality",
        target="ehr_eval.tasks:InHospitalMortality",
        config=InHospitalMortalityConfig,
        summary="Death before the discharge of a stay, asked 24 h after admission",
        outcomes=("binary",),
    )
    yield Component(
        name="readmission_30d",
        target="ehr_eval.tasks:Readmission30d",
        config=Readmission30dConfig,
        summary="A new admission within 30 days of a live discharge",
        outcomes=("binary",),
    )
    yield Component(
        name="length_of_stay",
        target="ehr_eval.tasks:LengthOfStay",
        config=LengthOfStayConfig,
        summary="Days that are left of a stay, asked 24 h after admission",
        outcomes=("regression",),
    )
    yield Component(
        name="length_of_stay_class",
        target="ehr_eval.tasks:LengthOfStayClass",
        config=LengthOfStayClassConfig,
        summary="Less than 2, 2 to 5, or more days that are left of a stay, asked 24 h after admission",
        outcomes=("multiclass",),
    )
    yield Component(
        name="next_diagnoses",
        target="ehr_eval.tasks:NextDiagnoses",
        config=NextDiagnosesConfig,
        summary="Chronic diseases that the next stay brings for the first time, asked at a live discharge",
        outcomes=("multilabel",),
    )
    yield Component(
        name="time_to_death",
        target="ehr_eval.tasks:TimeToDeath",
        config=TimeToDeathConfig,
        summary="Days to death in hospital, censored at a live discharge, asked 24 h after admission",
        outcomes=("survival",),
    )


@hookimpl
def ehr_baselines() -> Iterator[Component]:
    yield Component(
        name="logistic",
        target="ehr_eval.baselines.logistic:Logistic",
        config=LogisticConfig,
        outcomes=(BINARY, MULTICLASS, MULTILABEL),
        summary="Logistic regression on counts and values",
    )
    yield Component(
        name="linear",
        target="ehr_eval.baselines.linear:Linear",
        config=LinearConfig,
        outcomes=(REGRESSION,),
        summary="Ridge regression on counts and values",
    )
    yield Component(
        name="cox",
        target="ehr_eval.baselines.cox:Cox",
        config=CoxConfig,
        outcomes=(SURVIVAL,),
        summary="Proportional hazards on counts and values",
    )


METRICS = [
    ("auroc", "ranking:Auroc", AurocConfig, (BINARY,), "Area under the ROC curve"),
    ("auprc", "ranking:Auprc", AuprcConfig, (BINARY,), "Average precision"),
    ("brier", "classes:Brier", BrierConfig, (BINARY,), "Squared error of the probability"),
    ("log_loss", "classes:LogLoss", LogLossConfig, (BINARY, MULTICLASS), "Negative log likelihood"),
    ("f1", "classes:F1", F1Config, (BINARY,), "Precision and recall in one number, at one threshold"),
    ("accuracy", "classes:Accuracy", AccuracyConfig, (MULTICLASS,), "Share of samples with the right class"),
    ("macro_f1", "classes:MacroF1", MacroF1Config, (MULTICLASS,), "F1 averaged over classes"),
    (
        "macro_auroc",
        "ranking:MacroAuroc",
        MacroAurocConfig,
        (MULTICLASS, MULTILABEL),
        "AUROC averaged over classes or labels",
    ),
    ("micro_auroc", "ranking:MicroAuroc", MicroAurocConfig, (MULTILABEL,), "AUROC of all labels together"),
    ("mae", "errors:Mae", MaeConfig, (REGRESSION,), "Mean absolute error"),
    ("rmse", "errors:Rmse", RmseConfig, (REGRESSION,), "Root of the mean squared error"),
    ("r2", "errors:R2", R2Config, (REGRESSION,), "Share of the variance that is explained"),
    ("c_index", "ranking:CIndex", CIndexConfig, (SURVIVAL,), "Concordance of risk and time"),
]
"""Name, target below ehr_eval.metrics, settings, kinds of outcome and summary of each metric."""


@hookimpl
def ehr_metrics() -> Iterator[Component]:
    for name, target, config, outcomes, summary in METRICS:
        yield Component(
            name=name, target=f"ehr_eval.metrics.{target}", config=config, outcomes=outcomes, summary=summary
        )


COMMANDS = [
    ("label", LabelConfig, "MEDS events to labels"),
    ("fit", FitConfig, "Labels and a dataset to fitted predictors"),
    ("predict", PredictConfig, "Fit predictors, and apply them to the other splits"),
    ("apply", ApplyConfig, "A fitted predictor and any dataset to predictions, without training"),
    ("evaluate", EvaluateConfig, "Predictions to scores with intervals"),
    ("report", ReportConfig, "Scores and curves as one HTML file"),
    ("benchmark", BenchmarkConfig, "Fit, apply, evaluate and report in one"),
]
"""Name, which is also that of the function in ehr_eval.commands, settings and summary of each command."""


@hookimpl
def ehr_commands() -> Iterator[Component]:
    for name, config, summary in COMMANDS:
        yield Component(name=name, target=f"ehr_eval.commands:{name}", config=config, summary=summary)
