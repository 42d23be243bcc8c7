"""The classic mistakes, put into the code one at a time: each turns a test of the suite red.

A mutation replaces one place of a module's source for the time of one test, in this process. What
it must break is a test of the suite, called here with arguments that it could have there.
"""

import ast
import contextlib
import functools
import importlib
import importlib.util
import inspect
from pathlib import Path
from typing import NamedTuple

import pytest

pytestmark = pytest.mark.usefixtures("compile_quickly")


class Check(NamedTuple):
    """A test of the suite: its file, its name, and the arguments to call it with."""

    file: str
    test: str
    arguments: tuple = ()

    def __call__(self):
        """Runs it in a module loaded anew, so that nothing compiled or cached there is left."""
        path = Path(__file__).parents[1] / f"{self.file}.py"
        spec = importlib.util.spec_from_file_location(f"mutated_{path.stem}", path)
        module = importlib.util.module_from_spec(spec)
        spec.loader.exec_module(module)
        getattr(module, self.test)(*self.arguments)


def every_cell(test, *arguments):
    return Check("learning_rules/test_every_cell", test, arguments)


full = functools.partial(every_cell, "test_full_ostl_is_bptt_in_every_leaf")
slope = functools.partial(every_cell, "test_ostl_is_the_slope_of_the_loss_of_a_smooth_cell")
deep = functools.partial(every_cell, "test_deep_stack_is_bptt_with_the_carries_above_stopped")
e_prop = functools.partial(every_cell, "test_local_traces_with_the_total_learning_signal_are_exact")


def equation(name):
    return Check("simulator/test_neurons", "test_cell_follows_its_equation", (name, True))


def rules(file, test, *arguments):
    return Check(f"learning_rules/test_{file}", f"test_{test}", arguments)


class Mutation(NamedTuple):
    """What is wrong, in which module, the text that stands there, the text instead, its check."""

    name: str
    module: str
    old: str
    new: str
    check: Check


RECURSION = rules("fatigue", "fatigue_is_the_recursion_read_before_its_increment")
PAIR = rules("stdp", "a_single_pair_changes_the_weight_by_the_window", 7, "all_to_all")
CELLS = [
    Mutation(
        "the reset has no gradient",
        "simulator.snu",
        "decay * s * (1 - y)",
        "decay * s * (1 - jax.lax.stop_gradient(y))",
        slope("soft snu recurrent"),
    ),
    Mutation(
        "a detached reset has a gradient",
        "simulator.lif",
        "reset_by = y if self.detach_reset else carry.y",
        "reset_by = carry.y",
        e_prop("lif recurrent, detached"),
    ),
    Mutation(
        "Euler for exponential",
        "simulator.neurons",
        "return math.exp(-dt / tau)",
        "return 1 - dt / tau",
        equation("lif subtract"),
    ),
    Mutation(
        "adaptation decays after its increment",
        "simulator.lif",
        "self.adaptation_decay * carry.a + carry.y",
        "self.adaptation_decay * (carry.a + carry.y)",
        equation("alif"),
    ),
    Mutation(
        "the current reaches the membrane a step late",
        "simulator.lif",
        "super().charge(carry, i)._replace(i=i)",
        "super().charge(carry, carry.i)._replace(i=i)",
        equation("synaptic_lif"),
    ),
]
TRACES = [
    Mutation(
        "H transposed in the product",
        "learning_rules.unroll",
        "product(carry.y, h, needed",
        "product(carry.y, h.T, needed",
        full("snu recurrent"),
    ),
    Mutation(
        "H transposed in its gradient",
        "learning_rules.traces",
        'recurrent_gradient(params["h"], y_before, dz)',
        'recurrent_gradient(params["h"], y_before, dz).T',
        full("snu recurrent"),
    ),
    Mutation(
        "the trace sums y_t instead of y_{t-1}",
        "learning_rules.traces",
        "u = _fan_in(w, h, xs, before.y)",
        "u = _fan_in(w, h, xs, ys)",
        full("snu recurrent"),
    ),
    Mutation(
        "the trace is a step late",
        "learning_rules.traces",
        "([] if h is None else [y_before])",
        "([] if h is None else [jnp.roll(y_before, 1, 0)])",
        slope("soft snu recurrent"),
    ),
    Mutation(
        "the trace without the last step",
        "learning_rules.traces",
        '+ jnp.einsum("rkbn,kbu->brnu", dz, u)',
        '+ jnp.einsum("rkbn,kbu->brnu", dz[:, :-1], u[:-1])',
        full("snu recurrent"),
    ),
    Mutation(
        "A transposed",
        "learning_rules.traces",
        '"brs,bsnu->brnu", p',
        '"bsr,bsnu->brnu", p',
        full("snu recurrent"),
    ),
    Mutation(
        "A transposed, any cell",
        "learning_rules.cell_trace",
        '"brs,bs...->br..."',
        '"bsr,bs...->br..."',
        full("gru"),
    ),
    Mutation(
        "the path from y_{t-1} to the state left out",
        "learning_rules.traces",
        "ds = jnp.stack(dmemory, 1) + dy[:, None] * trace.gain",
        "ds = jnp.stack(dmemory, 1)",
        full("lif recurrent"),
    ),
    Mutation(
        "the path of the bias through y_{t-1} left out",
        "learning_rules.traces",
        '+ jnp.einsum("bi,bin->n", dy, trace.outputs[k])',
        "",
        full("snu recurrent"),
    ),
    Mutation(
        "the path of the bias through its own y_{t-1} left out",
        "learning_rules.traces",
        "((dmemory * e).sum(1) + dy * trace.outputs[k])",
        "(dmemory * e).sum(1)",
        full("snu"),
    ),
    Mutation(
        "the output before the first step depends on the bias",
        "learning_rules.traces",
        "y_zeros = {k: jnp.zeros(",
        "y_zeros = {k: jnp.ones(",
        full("soft snu recurrent"),
    ),
    Mutation(
        "the trace is never read",
        "learning_rules.cell_trace",
        "carried + inside",
        "0 * carried + inside",
        full("lstm"),
    ),
    Mutation(
        "the gradient of the step itself left out",
        "learning_rules.cell_trace",
        "[d.sum(0) + c for d, (c, _)",
        "[0 * d.sum(0) + c for d, (c, _)",
        full("simple"),
    ),
    Mutation(
        "the biases of different gates mixed up",
        "learning_rules.cell_trace",
        "np.arange(eps.shape[-1]) % self.n",
        "np.arange(eps.shape[-1]) // (eps.shape[-1] // self.n)",
        rules("scopes", "snap_1_is_rtrl_without_influence_between_units", "optimized lstm"),
    ),
    Mutation(
        "a sum of what is learnt at this step taken for one unit's",
        "learning_rules.sites",
        "mixed = eqn.invars[0] in learnt or z not in to_state",
        "mixed = z not in to_state",
        rules("sites", "without_h_is_bptt_with_the_state_held_in_products", "nested"),
    ),
    Mutation(
        "the cut takes what is learnt at this step with it",
        "learning_rules.cut",
        "bind(eqn, [read(held, v) for v in eqn.invars])",
        "bind(eqn, [jax.lax.stop_gradient(read(held, v)) for v in eqn.invars])",
        rules("sites", "without_h_is_bptt_with_the_state_held_in_products", "nested"),
    ),
    Mutation(
        "the mean over time for the sum",
        "learning_rules.bptt",
        "return jnp.sum(jnp.mean(per_step, axis=1))",
        "return jnp.mean(per_step)",
        slope("leaky readout"),
    ),
    Mutation(
        "layers below learn through the state above",
        "learning_rules.traces",
        "if spatial else dz\n",
        "if False else dz\n",
        deep(("mgu", "alif recurrent", "gru")),
    ),
    Mutation(
        "scope no_h keeps the path through H",
        "learning_rules.traces",
        "return held @ h + own",
        "return y @ h + own",
        e_prop("lif recurrent, detached"),
    ),
    Mutation(
        "scope unit drops the diagonal of H",
        "learning_rules.traces",
        "jnp.diagonal(h) * (y - held)",
        "0 * (y - held)",
        rules("scopes", "snap_1_is_rtrl_without_influence_between_units", "snu"),
    ),
    Mutation(
        "H meets the last output of the sequence before",
        "learning_rules.restart",
        "return before if restart is None else restarted",
        "return before if True else restarted",
        rules("resets", "a_stream_of_sequences_is_a_batch_of_them"),
    ),
    Mutation(
        "SLTT without the recurrent input",
        "learning_rules.same_step",
        "z + kept.before.y @ h",
        "z",
        rules("scopes", "sltt_is_bptt_with_every_carry_held_constant", "snu"),
    ),
    Mutation(
        "SLTT-K without its scale",
        "learning_rules.sltt",
        "weight = steps / k if scale else 1.0",
        "weight = 1.0",
        rules("scopes", "the_steps_of_sltt_k_are_sltt_on_average"),
    ),
    Mutation(
        "the trace of OTTT does not decay",
        "learning_rules.ottt",
        "decay * a + u",
        "a + u",
        rules("scopes_properties", "ottt_online_and_accumulated_by_a_loop_in_numpy"),
    ),
]
LOCAL = [
    Mutation(
        "Euler for exponential in STDP",
        "learning_rules.stdp",
        "math.exp(-rule.dt / tau)",
        "1 - rule.dt / tau",
        PAIR,
    ),
    Mutation(
        "STDP reads a trace after its increment",
        "learning_rules.stdp",
        "return decay * trace, decayed",
        "return decay * trace + spikes, decayed",
        rules("stdp", "a_pair_in_one_step_does_what_the_option_says", "ignore", "all_to_all"),
    ),
    Mutation(
        "a trace decays after its increment",
        "learning_rules.synaptic_trace",
        "new = decay * trace + spikes",
        "new = decay * (trace + spikes)",
        PAIR,
    ),
    Mutation(
        "potentiation and depression exchanged",
        "learning_rules.stdp",
        "up * mean_product(before_post, post) - down * mean_product(pre, before_pre)",
        "up * mean_product(pre, before_pre) - down * mean_product(before_post, post)",
        PAIR,
    ),
    Mutation(
        "triplet STDP reads o2 after its increment",
        "learning_rules.stdp",
        "self.a3_plus * o2)",
        "self.a3_plus * post_slow)",
        rules("stdp_triplet", "the_slow_traces_never_see_the_spike_that_reads_them"),
    ),
    Mutation(
        "triplet STDP reads x2 after its increment",
        "learning_rules.stdp",
        "self.a3_minus * x2)",
        "self.a3_minus * pre_slow)",
        rules("stdp_triplet", "random_trains_give_the_sum_over_events", "all_to_all"),
    ),
    Mutation(
        "the reward comes before the pair of its step",
        "learning_rules.reward_stdp",
        "eligibility = term = decay * eligibility + (1 - decay) * term",
        "term, eligibility = decay * eligibility, decay * eligibility + (1 - decay) * term",
        rules("stdp_reward", "it_is_the_eligibility_of_each_sample_times_its_reward"),
    ),
    Mutation(
        "F read after its increment",
        "learning_rules.fatigue",
        "self.efficacy(self._decay() * state.fatigue)",
        "self.efficacy(self._decay() * state.fatigue) * (1 - self.use)",
        RECURSION,
    ),
    Mutation(
        "Euler for exponential in fatigue",
        "learning_rules.fatigue",
        "math.exp(-self.pair.dt / self.tau_fatigue)",
        "1 - self.pair.dt / self.tau_fatigue",
        RECURSION,
    ),
    Mutation(
        "an input is its own partner in its group",
        "learning_rules.fatigue",
        "(1 + (count - 1) * correlation)",
        "(1 + count * correlation)",
        rules("fatigue", "conditions_are_the_signs_of_the_drift", 0.0033),
    ),
    Mutation(
        "F read after its increment, from spike to spike",
        "kernels.stdp_events",
        "(spikes * (1 - fatigue)) @ w",
        "(spikes * (1 - fatigue) * (1 - s.use)) @ w",
        Check("kernels/test_stdp_events", "test_the_step_of_the_reference_is_that_in_numpy"),
    ),
    Mutation(
        "events a step late",
        "kernels.stdp_events",
        "np.arange(steps + 1) * width",
        "np.arange(-1, steps) * width",
        Check("kernels/test_stdp_events", "test_packing_sorts_and_drops_what_is_outside"),
    ),
    Mutation(
        "depression by the voltage of the spike itself",
        "learning_rules.voltage_stdp",
        "jax.nn.relu(state.minus - self.theta_minus)",
        "jax.nn.relu(voltage - self.theta_minus)",
        rules("stdp_voltage", "pre_before_a_spike_potentiates_and_after_it_depresses"),
    ),
    Mutation(
        "Euler for exponential in homeostasis",
        "learning_rules.homeostasis",
        "rates - math.expm1(-self.dt / self.tau) *",
        "rates + self.dt / self.tau *",
        rules("homeostasis", "scaling_follows_the_averaged_rate_and_keeps_ratios"),
    ),
    Mutation(
        "covariance divided by one rate only",
        "learning_rules.normcov",
        "return ratio.T @ ratio /",
        "return mean[:, None] * ratio.T @ ratio /",
        rules("fatigue_normcov", "normalised_covariance_is_that_of_numpy_and_knows_no_rates"),
    ),
    Mutation(
        "lag 0 is the step before",
        "simulator.delays",
        "DelayState(window), window.reshape",
        "DelayState(window), carry.window.reshape",
        Check("simulator/test_delays", "test_lag_0_is_this_step_and_the_window_goes_back_in_time"),
    ),
    Mutation(
        "importance summed over the units too",
        "learning_rules.grapes",
        "return jnp.abs(kernel).sum(tuple(range(kernel.ndim - 1)))",
        "return jnp.full(kernel.shape[-1], jnp.abs(kernel).sum())",
        rules("grapes_factor", "importance_and_factor_of_the_example"),
    ),
    Mutation(
        "gradient through a factor",
        "learning_rules.grapes",
        "importance = jax.lax.stop_gradient(importance)",
        "",
        rules("grapes_factor", "no_gradient_flows_through_a_factor"),
    ),
]
LEAK = rules("broadcast", "symmetric_e_prop_is_bptt_without_recurrence")
BROADCAST = [
    Mutation(
        "feedback alignment with the weights themselves",
        "learning_rules.feedback",
        '{**layer.part, "kernel": b}',
        "layer.part",
        rules("feedback", "gradients_are_the_equations", False, None),
    ),
    Mutation(
        "the sums of e-prop do not decay",
        "learning_rules.eprop",
        "*new[:-1], self.kappa * carry.summed + carry.y",
        "*new[:-1], carry.summed + carry.y",
        LEAK,
    ),
    Mutation(
        "the readout of e-prop gets the sums a step late",
        "learning_rules.eprop",
        "return carry.y, self.kappa * carry.summed + carry.y",
        "return carry.y, carry.summed",
        LEAK,
    ),
    Mutation(
        "adaptive feedback does not learn",
        "learning_rules.eprop",
        '{0: grads["layers"][readout][name].T}',
        '{0: 0 * grads["layers"][readout][name].T}',
        rules("broadcast", "adaptive_feedback_learns_what_the_readout_learns"),
    ),
    Mutation(
        "the error is projected instead of the target",
        "learning_rules.osttp",
        "targets = targets.astype(error.dtype) / error.shape[1]",
        "targets = error",
        rules(
            "broadcast",
            "target_projection_is_the_target_times_the_exact_jacobian_of_each_layer",
        ),
    ),
]
MUTATIONS = CELLS + TRACES + LOCAL + BROADCAST


@contextlib.contextmanager
def mutated(module, old, new):
    """The module with `new` in the place of `old`, until the end of the block.

    The code of the one function or method around it is exchanged, so that whoever imported that
    function, or decorated it, runs the new code too.
    """
    source = inspect.getsource(module)
    if source.count(old) != 1:
        pytest.fail(
            f"{old!r} stands {source.count(old)} times in {module.__name__}, and must be there "
            "once: let the mutation say what the equation looks like now."
        )
    line = source[: source.index(old)].count("\n") + 1
    path, body = [], ast.parse(source).body
    while not path or isinstance(node, ast.ClassDef):
        (node,) = [n for n in body if n.lineno <= line <= n.end_lineno]
        path.append(node.name)
        body = node.body
    function, code = module, compile(source.replace(old, new), module.__file__, "exec")
    for name in path:
        function = inspect.unwrap(vars(function)[name])
        (code,) = [c for c in code.co_consts if getattr(c, "co_name", None) == name]
    original, function.__code__ = function.__code__, code
    try:
        yield
    finally:
        function.__code__ = original


@functools.cache
def passes(check):
    """Runs a check on the code as it is."""
    check()


@pytest.mark.parametrize("mutation", [pytest.param(m, id=m.name) for m in MUTATIONS])
def test_a_mistake_turns_a_test_red(mutation):
    passes(mutation.check)
    module = importlib.import_module(f"spikebit.{mutation.module}")
    with mutated(module, mutation.old, mutation.new), pytest.raises(AssertionError):
        mutation.check()
