"""What all tests share."""

from collections.abc import Iterator

import pytest
import torch

from ntkit.faults import strict

REPEATS = (  # cases of which the default suite runs others of the same kind: with `make slow`
    "test_limit.py::test_blocks_do_not_depend_on_the_tiles[tanh MLP]",
    "test_limit.py::test_blocks_do_not_depend_on_the_tiles[ELU and Hardtanh]",
    "test_zero_variance.py::test_residual_blocks_without_bias[plain]",
    "test_zero_variance.py::test_residual_blocks_without_bias[pooled]",
    "test_networks.py::test_the_limit_is_met_by_finite_draws[LSTMCell]",
    "test_networks.py::test_the_limit_is_met_by_finite_draws[queries and keys normed",
    "test_attention.py::test_one_attention_against_draws_of_a_head[windows]",
    "test_attention.py::test_one_attention_against_draws_of_a_head[a table of which",
    "test_maxima.py::test_maxima_of_one_layer_against_draws[two on one another]",
    "test_positions.py::test_blocks_between_positions[tokens of a transformer]",
    "test_empirical.py::test_every_network_against_autograd[LSTM, two layers, both",
    "test_empirical.py::test_a_small_budget_changes_nothing[2000-tied embedding",
    "test_stream.py::test_every_network_in_parts[LSTM, two layers, both",
    "test_zoo.py::test_the_kernel_is_that_of_autograd[gpt2]",
    "test_transformers.py::test_a_training_is_accounted_for[settings1",
    "test_transformers.py::test_the_trainers_own_loss_of_tokens[make0-2]",
    "test_account.py::test_calibrated_table[Adam 1e-2 full batch]",
    "test_account.py::test_calibrated_table[Adam 1e-3]",
    "test_loose.py::test_the_residual_is_within_the_tolerance_and_the_columns_are_those_of_float64[ReLU-0.01",
    "test_structure.py::test_accounts_with_and_without_structure[tied]",
    "test_laws.py::test_laws[EmpiricalNTK, full]",
    "test_counterfactual.py::test_effects_are_differences_of_training_again[None-Adam]",
    "test_counterfactual.py::test_effects_are_differences_of_training_again[None-RMSprop]",
    "test_conventions.py::test_scales_are_searched_in_a_pipeline[limit kernel-GradientFlow]",
    "test_conventions.py::test_any_kernel_cloned_and_pickled[limit kernel",
    "test_attention.py::test_blocks_do_not_depend_on_tiles",
    "test_limit.py::test_more_points_and_other_seeds_agree_within_the_reported_error[softmax attention]",
    "test_limit.py::test_blocks_are_those_of_one_symmetric_positive_kernel[softmax attention]",
    "test_zero_variance.py::test_residual_blocks_without_bias[norm]",
    "test_zero_variance.py::test_rows_of_zeros_without_bias[kink by hand]",
    "test_attention.py::test_one_attention_against_draws_of_a_head[windows with masks]",
    "test_networks.py::test_the_limit_is_met_by_finite_draws[rotary embeddings]",
    "test_loose.py::test_the_residual_is_within_the_tolerance_and_the_columns_are_those_of_float64[ReLU-0.001-True]",
    "test_watching.py::test_the_same_as_afterwards[momentum]",
    "test_account.py::test_ball_and_sphere_full_batch_two_nodes",
    "test_derivatives.py::test_derivatives_by_structure[convolutions, laplacian]",
    "test_laws.py::test_laws[normalized]",
    "test_packed.py::test_packed_sequences_by_structure[dropout in eval]",
    "test_budget.py::test_a_small_budget_gives_the_same_numbers[attention]",
    "test_transformers.py::test_a_training_is_accounted_for[settings0-make2]",
    "test_gains.py::test_samples_that_are_close[0.0001-silu]",
    "test_operations.py::test_the_limit_is_met_by_finite_draws[rsub]",
    "test_written_out.py::test_writing_in_place[one after the other]",
    "test_empirical.py::test_a_small_budget_changes_nothing[40 kB-tied embedding",
)
HALVED = (  # of these the default suite runs every other case
    "test_derivatives.py::test_derivatives_by_structure[",
    "test_products.py::test_every_order_gives_the_kernel[",
    "test_packed.py::test_packed_sequences_by_structure[",
    "test_stream.py::test_every_network_in_parts[",
    "test_operator.py::test_products_are_those_of_the_matrix[",
    "test_parametrize.py::test_every_network_keeps_its_parameters_and_its_kernel[",
    "test_networks.py::test_the_limit_is_met_by_finite_draws[",
    "test_conventions.py::test_any_kernel_cloned_and_pickled[",
    "test_conventions.py::test_hard_tables_give_numbers[",
    "test_estimators.py::test_scikit_learns_checks[",
    "test_empirical.py::test_a_small_budget_changes_nothing[",
    "test_structure.py::test_products_with_the_gradients_of_samples[",
    "test_relatives.py::test_the_linearized_network_is_its_first_order[",
    "test_retrain.py::test_nothing_left_out_is_the_run_itself[",
    "test_surroundings.py::test_what_is_the_users_is_as_it_was[",
    "test_zero_variance.py::test_rows_of_zeros_against_a_wide_network[",
    "test_operations.py::test_the_limit_is_met_by_finite_draws[",
    "test_optimizers.py::test_groups_ragged_batches_a_schedule_clipping",
    "test_any_model.py::test_contributions_are_those_of_single_backward_passes[",
    "test_attention.py::test_one_attention_against_draws_of_a_head[",
    "test_limit.py::test_blocks_are_those_of_one_symmetric_positive_kernel[",
    "test_gains.py::test_several_scales_in_closed_form[",
    "test_written_out.py::test_layer_norms_by_hand[",
    "test_written_out.py::test_rms_norms_by_hand[",
    "test_each_call.py::test_values_that_python_reads_are_those_of_each_sample[",
    "test_out_of_the_box.py::test_the_scale_of_the_kernel_does_not_matter[",
)

torch.set_num_threads(1)  # the tests' matrices are small: threads only wait for each other


@pytest.hookimpl(tryfirst=True)  # before those with the mark are left out
def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Mark repeats as slow."""
    count = dict.fromkeys(HALVED, 0)
    for item in items:
        half = next((family for family in HALVED if family in item.nodeid), None)
        if half is not None:
            count[half] += 1
        if any(repeat in item.nodeid for repeat in REPEATS) or (half is not None and count[half] % 2 == 0):
            item.add_marker(pytest.mark.slow)


@pytest.fixture(autouse=True)
def own_faults_come_through() -> Iterator[None]:
    """An error that begins in ntkit's own code is never taken for one of the user's network."""
    with strict():
        yield
