"""What all tests share."""

from collections.abc import Iterator

import pytest
import torch

from ntkit.faults import strict

REPEATS = (  # with `make slow`: cases of which the default suite runs others of the same kind, and long ones
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
    "test_one_function.py::test_functions_written_by_hand[a difference of its own]",
    "test_one_function.py::test_a_choice_by_the_vector_itself_is_its_function",
    "test_attention.py::test_slopes_of_each_head_are_averaged_over_heads",
    "test_attention.py::test_windows_shifted_and_masked_one_by_one",
    "test_attention.py::test_two_layers_with_skips_and_norms_against_many_heads[256]",
    "test_written_out.py::test_attention_by_einsum_is_attention_by_products",
    "test_by_use.py::test_einsum_heads_tables_and_convolutions_of_raw_parameters",
    "test_by_use.py::test_a_graph_convolution_of_its_own_kind",
    "test_gains.py::test_single_precision",
    "test_constants.py::test_a_batch_is_its_samples[fixed_queries]",
    "test_memory.py::test_a_diagonal_makes_no_square",
    "test_account.py::test_digits_with_cross_entropy_and_chunks",
    "test_optimizers.py::test_momentum_and_rate_that_cycle_and_gradients_that_come_and_go",
    "test_loose.py::test_fewer_nodes_than_with_equal_shares",
    "test_quadrature.py::test_rule_of_a_step_against_a_very_fine_one[False]",
    "test_reductions.py::test_against_draws_of_the_layer[std and mean]",
    "test_depth.py::test_a_thousand_layers[layer-500]",
    "test_types.py::test_no_result_is_any",
)
HALVED = (  # of these the default suite runs every other case
    "test_derivatives.py::test_derivatives_by_structure[",
    "test_products.py::test_every_order_gives_the_kernel[",
    "test_packed.py::test_packed_sequences_by_structure[",
    "test_stream.py::test_every_network_in_parts[",
    "test_operator.py::test_products_are_those_of_the_matrix[",
    "test_parametrize.py::test_every_network_keeps_its_parameters_and_its_kernel[",
    "test_conventions.py::test_any_kernel_cloned_and_pickled[",
    "test_empirical.py::test_a_small_budget_changes_nothing[",
    "test_structure.py::test_products_with_the_gradients_of_samples[",
    "test_relatives.py::test_the_linearized_network_is_its_first_order[",
    "test_retrain.py::test_nothing_left_out_is_the_run_itself[",
    "test_surroundings.py::test_what_is_the_users_is_as_it_was[",
    "test_zero_variance.py::test_rows_of_zeros_against_a_wide_network[",
    "test_optimizers.py::test_groups_ragged_batches_a_schedule_clipping",
    "test_any_model.py::test_contributions_are_those_of_single_backward_passes[",
    "test_limit.py::test_blocks_are_those_of_one_symmetric_positive_kernel[",
    "test_written_out.py::test_layer_norms_by_hand[",
    "test_written_out.py::test_rms_norms_by_hand[",
    "test_each_call.py::test_values_that_python_reads_are_those_of_each_sample[",
    "test_out_of_the_box.py::test_the_scale_of_the_kernel_does_not_matter[",
    "test_account.py::test_calibrated_table[",
    "test_limit.py::test_blocks_do_not_depend_on_the_tiles[",
    "test_laws.py::test_laws[",
    "test_constants.py::test_against_wide_networks[",
    "test_exactness.py::",
    "test_against_quadrature.py::test_slopes_along_both_directions[",
    "test_against_quadrature.py::test_means_gains_and_squares[",
    "test_against_quadrature.py::test_slopes_weighted_by_squares[",
    "test_against_quadrature.py::test_weighted_slopes_where_a_variance_is_zero[",
    "test_path_kernel.py::test_against_jacobians[",
    "test_parts.py::test_training_data_from_datasets_and_loaders[",
    "test_parts.py::test_accounts_of_one_of_several_outputs[",
    "test_parts_of_outputs.py::test_estimates_of_one_of_several_outputs[",
    "test_by_use.py::test_draws_are_those_of_linear_layers[",
    "test_by_use.py::test_frozen_weights_",
    "test_averaging.py::test_ema_and_swa[",
    "test_quadrature.py::test_kinked_networks_reach_the_tolerance[",
    "test_gains.py::test_samples_that_are_close[",
    "test_judged.py::test_kinks_that_nobody_named[",
    "test_coordinates.py::test_coordinates_of_a_wide_network_have_the_moments_of_the_limit[",
    "test_every.py::test_the_same_as_with_all_steps[",
    "test_account.py::test_healthy_runs_with_vanishing_gradients_are_not_refused[",
    "test_maxima.py::",
    "test_rotary.py::",
    "test_empirical.py::test_every_network_against_autograd[",
    "test_structure.py::test_served[",
    "test_optimizers.py::test_residual_is_rounding_and_samples_agree_with_the_oracle[",
    "test_depth.py::test_the_memory_of_a_pair_does_not_grow_with_the_depth[",
    "test_watching.py::test_the_same_as_afterwards[",
    "test_zoo.py::test_the_kernel_is_that_of_autograd[",
    "test_limit.py::test_float32_is_float64_to_rounding[",
    "test_gradients.py::test_clipping[",
    "test_forward_mode.py::test_contributions_are_those_of_backward_passes[",
    "test_loose.py::test_the_residual_is_within_the_tolerance",
    "test_written_out.py::test_fixed_indices_matrices_and_fills[",
    "test_error.py::test_of_functions[",
    "test_monte_carlo.py::test_draws",
    "test_golden.py::test_the_limit_is_the_golden_one[",
)
QUARTERED = (  # and of these every fourth one
    "test_networks.py::test_the_limit_is_met_by_finite_draws[",
    "test_operations.py::test_the_limit_is_met_by_finite_draws[",
    "test_attention.py::test_one_attention_against_draws_of_a_head[",
    "test_gains.py::test_several_scales_in_closed_form[",
    "test_estimators.py::test_scikit_learns_checks[",
    "test_hard_tables_give_numbers[",
)

torch.set_num_threads(1)  # the tests' matrices are small: threads only wait for each other


@pytest.hookimpl(tryfirst=True)  # before those with the mark are left out
def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Mark repeats as slow."""
    often = dict.fromkeys(HALVED, 2) | dict.fromkeys(QUARTERED, 4)
    count = dict.fromkeys(often, 0)
    for item in items:
        family = next((family for family in often if family in item.nodeid), None)
        left_out = any(repeat in item.nodeid for repeat in REPEATS)
        if family is not None:
            left_out |= count[family] % often[family] > 0
            count[family] += 1
        if left_out:
            item.add_marker(pytest.mark.slow)


@pytest.fixture(autouse=True)
def own_faults_come_through() -> Iterator[None]:
    """An error that begins in ntkit's own code is never taken for one of the user's network."""
    with strict():
        yield
