"""All studies, by their names in `python -m experiments`."""

from typing import Any

from experiments.accelerators import study as accelerators
from experiments.accuracy import study as accuracy
from experiments.batch_size import study as batch_size
from experiments.benchmark import study as benchmark
from experiments.covariate_shift import study as covariate_shift
from experiments.crops_and_ensemble import study as crops_and_ensemble
from experiments.device import study as device
from experiments.feature_scaling import study as feature_scaling
from experiments.figure1 import study as figure1
from experiments.figure1 import sweep as figure1_sweep
from experiments.fine_tune import study as fine_tune
from experiments.identity import study as identity
from experiments.imagenet import study as imagenet
from experiments.inference_statistics import study as inference_statistics
from experiments.initialisation import study as initialisation
from experiments.learning_rate import study as learning_rate
from experiments.learning_rate_ladder import study as learning_rate_ladder
from experiments.outside_gradient import study as outside_gradient
from experiments.padding import study as padding
from experiments.placement import study as placement
from experiments.policy_cost import study as policy_cost
from experiments.regularisation import study as regularisation
from experiments.saturation import study as saturation
from experiments.scale_invariance import study as scale_invariance
from experiments.sync_cost import study as sync_cost
from experiments.sync_policies import study as sync_policies
from experiments.whitening import study as whitening

STUDIES: dict[str, Any] = {
    "accelerators": accelerators.Accelerators,
    "accuracy": accuracy.Accuracy,
    "batch_size": batch_size.BatchSize,
    "benchmark": benchmark.Benchmark,
    "covariate_shift": covariate_shift.CovariateShift,
    "crops_and_ensemble": crops_and_ensemble.CropsAndEnsemble,
    "device": device.Device,
    "feature_scaling": feature_scaling.FeatureScaling,
    "figure1": figure1.Figure1,
    "figure1_sweep": figure1_sweep.Figure1Sweep,
    "fine_tune": fine_tune.FineTune,
    "identity": identity.Identity,
    "imagenet": imagenet.ImageNet,
    "inference_statistics": inference_statistics.InferenceStatistics,
    "initialisation": initialisation.Initialisation,
    "learning_rate": learning_rate.LearningRate,
    "learning_rate_ladder": learning_rate_ladder.LearningRateLadder,
    "outside_gradient": outside_gradient.OutsideGradient,
    "padding": padding.Padding,
    "placement": placement.Placement,
    "policy_cost": policy_cost.PolicyCost,
    "regularisation": regularisation.Regularisation,
    "saturation": saturation.Saturation,
    "scale_invariance": scale_invariance.ScaleInvariance,
    "sync_cost": sync_cost.SyncCost,
    "sync_policies": sync_policies.SyncPolicies,
    "whitening": whitening.Whitening,
}
