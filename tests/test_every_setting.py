"""Every setting that changes a number has a test that says what the number is then."""

from __future__ import annotations

import re
from pathlib import Path

import pytest

from sparface.config import Config, flatten
from sparface.recipes import registry

HERE = Path(__file__).parent
TESTS = {
    "shards/test_data_settings.py::test_each_setting_decides_which_faces_come_when": {
        "data": "identities_per_batch images_per_identity window lanes"
    },
    "shards/test_data_settings.py::test_what_to_do_with_broken_faces": {
        "data": "on_bad_sample max_bad_share"
    },
    "shards/test_mix.py::test_every_batch_has_each_sets_share_and_one_label_per_person": {"data": "mix"},
    "models/test_sae.py::test_width_blocks_and_noise_come_from_the_config": {"generator": "width blocks"},
    "models/test_recognizer.py::test_timm_backbones_embed_without_dropout": {
        "recognizer": "backbone embedding"
    },
    "recipes/test_distillation.py::test_a_step_is_the_formula": {
        "objective": "distillation distillation_contrast"
    },
    "models/test_recognizer.py::test_fixed_statistics_are_used_and_kept": {"recognizer": "fixed_statistics"},
    "training/test_start.py::test_weights_files_are_the_backbones": {"training": "start_from"},
    "recipes/test_dropout_step.py::test_a_step_drops_features_by_position": {"recognizer": "dropout"},
    "recipes/test_recognizer_step.py::test_variation_and_its_strength": {
        "data": "variation variation_strength"
    },
    "recipes/test_recognizer_step.py::test_a_step_is_the_formula": {
        "objective": "triplet margin mining cross_entropy scale arcface arcface_margin arcface_scale "
        "label_smoothing"
    },
    "recipes/test_sparring_step.py::test_a_step_is_the_formula": {
        "sparring": "attack update batchnorm",
    },
    "recipes/test_sparring_forms.py::test_the_occluder_learns_to_cover_what_identity_is_in": {
        "sparring": "form choice"
    },
    "recipes/test_sparring_forms.py::test_faces_that_are_replaced_count_like_all_others": {
        "sparring": "slots"
    },
    "recipes/test_sparring_forms.py::test_a_share_of_each_group_is_replaced": {"sparring": "share"},
    "recipes/test_sparring_forms.py::test_the_worst_of_several_is_the_worst_for_the_recognizer_itself": {
        "sparring": "candidates"
    },
    "recipes/test_sparring_forms.py::test_a_warm_up_is_random_and_the_generator_learns_in_it": {
        "sparring": "warmup_images"
    },
    "recipes/test_sparring_forms.py::test_the_governor_keeps_accuracy_in_its_band": {
        "sparring": "band_low band_high"
    },
    "recipes/test_sparring_step.py::test_each_objective_setting": {
        "sparring": "weight attack_weight perturbation_weight mask_weight mask_area"
    },
    "recipes/test_sparring_step.py::test_each_generator_setting": {"generator": "noise epsilon"},
    "models/test_classifier.py::test_faces_are_normalised_for_each_backbone_and_features_joined": {
        "classifier": "backbone"
    },
    "recipes/test_expression.py::test_free_moves_the_faces_by_the_gradients_of_the_updates": {
        "adversarial": "training epsilon replays"
    },
    "recipes/test_two_processes.py::test_same_gradients_losses_and_buffers": {
        "training": "batchnorm batchnorm_group"
    },
    "recipes/test_purifier.py::test_reinforce_has_the_gradient_of_the_mean_cost": {
        "purifier": "colour components selection clones pixel_weight kept_weight identity_weight"
    },
    "recipes/test_purifier.py::test_the_attack_goes_through_the_moving_average": {
        "purifier": "epsilon warmup_images"
    },
    "recipes/test_purifier.py::test_memory_and_copy_follow_by_a_moving_average": {"purifier": "decay"},
    "training/test_purifier_run.py::test_an_onnx_recognizer_is_copied": {"purifier": "recognizer"},
    "training/test_optimizers.py::test_weights_follow_the_formula": {
        "optimizer": "name learning_rate beta1 beta2 weight_decay"
    },
    "recipes/test_sparring_step.py::test_the_generators_own_rate": {"sparring": "generator_learning_rate"},
    "training/test_update.py::test_gradients_are_clipped_network_by_network": {"optimizer": "clip_norm"},
    "training/test_update.py::test_accumulated_batches_are_averaged": {"training": "accumulate"},
    "training/test_update.py::test_half_precision_takes_the_same_step": {"training": "precision"},
    "training/test_schedule.py::test_length_in_images_or_in_passes_over_72": {"schedule": "images epochs"},
    "training/test_schedule.py::test_the_rate_rises_linearly_and_falls_as_named": {
        "schedule": "warmup_images decay"
    },
    "training/test_settings_in_a_run.py::test_the_seed_decides_weights_and_order": {"training": "seed"},
    "training/test_settings_in_a_run.py::test_threads": {"training": "threads"},
    "training/test_settings_in_a_run.py::test_the_average_of_a_run": {"training": "average_half_life"},
    "training/test_settings_in_a_run.py::test_moments_and_what_is_kept": {
        "training": "log_every preview_every checkpoint_every keep_checkpoints"
    },
    "training/test_settings_in_a_run.py::test_validation_at_its_moments": {
        "validation": "shards pairs every"
    },
    "evaluation/test_mirror.py::test_validation_and_evaluation_agree": {"validation": "mirror"},
    "training/test_noise_gan_run.py::test_made_faces_are_compared_with_photos_during_training": {
        "validation": "judge"
    },
    "training/test_settings_in_a_run.py::test_a_rollback_lowers_the_rate": {
        "watch": "rollback_rate max_rollbacks"
    },
    "training/test_watch_settings.py::test_a_metric_that_is_not_finite": {"watch": "non_finite"},
    "training/test_watch_settings.py::test_a_spike_is_a_loss_above_so_many_times_its_running_mean": {
        "watch": "loss_spike loss_spike_factor"
    },
    "recipes/test_noise_gan.py::test_the_losses_are_the_formulas": {
        "noise_gan": "loss identity_weight augmentation"
    },
    "recipes/test_noise_gan.py::test_the_penalty_is_the_squared_slope_at_real_faces": {
        "noise_gan": "r1 r1_every"
    },
    "recipes/test_noise_gan.py::test_who_is_shown_depends_on_the_label_and_the_face_on_the_noise": {
        "noise_gan": "conditional"
    },
    "recipes/test_noise_gan.py::test_sizes_of_the_networks": {"noise_gan": "width latent embedding"},
    "recipes/test_noise_gan.py::test_spectral_normalisation_bounds_the_slope": {"noise_gan": "spectral_norm"},
    "recipes/test_noise_gan.py::test_the_discriminators_own_rate": {
        "noise_gan": "discriminator_learning_rate"
    },
    "recipes/test_noise_gan.py::test_levels_move_by_half_in_a_half_life": {"noise_gan_watch": "half_life"},
    "recipes/test_noise_gan.py::test_a_level_beyond_its_bound": {
        "noise_gan_watch": "dead right_high collapse diversity_low variety_low"
    },
    "training/test_watch_settings.py::test_a_dead_generator": {"generator_watch": "shift_low"},
    "training/test_watch_settings.py::test_a_state_beyond_its_bound": {
        "watch": "collapse collapse_cosine",
        "generator_watch": "dead mask_low mask_high perturbation_low places_low wins shift_high",
    },
}
"""Test → the settings of which it fails where one is ignored or means something else."""
OTHERS = {
    "recipe": "which networks there are",
    "size": "must be the shard set's",
    "data.shards": "where the faces are",
    "data.workers": "the same batches, sooner",
    "training.strategy": "the same numbers on other machines",
    "training.deepspeed": "the same numbers on other machines",
    "training.device": "the same numbers on other machines",
    "training.kernels": "the same numbers, sooner",
    "training.compile": "the same numbers, sooner",
    "training.timeout": "when a process gives up",
    **dict.fromkeys(
        ("tracking.enabled", "tracking.uri", "tracking.experiment", "tracking.run_name"),
        "where numbers are sent",
    ),
}
"""Settings that change no number of a training, and what they are for."""


def everything() -> Config:
    return Config(blocks={name: kind() for name, kind in registry.blocks().items()})


def test_every_setting_has_its_test() -> None:
    tested = [
        f"{group}.{name}"
        for settings in TESTS.values()
        for group, names in settings.items()
        for name in names.split()
    ]
    assert sorted([*tested, *OTHERS]) == sorted(flatten(everything()))


@pytest.mark.parametrize("place", TESTS)
def test_the_test_is_there(place: str) -> None:
    file, _, name = place.partition("::")
    assert re.search(rf"^def {name}\(", (HERE / file).read_text(), re.MULTILINE)
