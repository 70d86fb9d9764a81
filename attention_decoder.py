"""Custom Keras Attention Layer: the article's section 4 (自定义Keras注意层).

`AttentionDecoder` is the decoder of Bahdanau, Cho & Bengio, "Neural Machine Translation by Jointly
Learning to Align and Translate" (arXiv:1409.0473, appendix A) as a Keras layer; `AttentionCell` is
one step of it. Copy this file into your project: it needs Keras (3.10 or later) and Python 3.9 or
later, and runs on TensorFlow, JAX and PyTorch.
"""

# Part of "Attention, read along". Copyright (c) 2026 the authors of that repository. MIT License.

import numbers

import keras
from keras import ops

# kernel_* are for V_a, W_a, U_a and E, recurrent_* for C, U, W and W_s, bias_* for b.
WEIGHT_DEFAULTS = {
    "kernel_initializer": "glorot_uniform", "kernel_regularizer": None, "kernel_constraint": None,
    "recurrent_initializer": "orthogonal", "recurrent_regularizer": None,
    "recurrent_constraint": None, "bias_initializer": "zeros", "bias_regularizer": None,
    "bias_constraint": None,
}  # fmt: skip


@keras.saving.register_keras_serializable(package="attention_decoder")
class AttentionCell(keras.layers.Layer):
    """One step of `AttentionDecoder`: all of its weights, and the equations of one t.

    Arguments as there. Called with x_t (batch, m), s_{t-1} (batch, u) and the memory, it returns
    y_t (batch, o), s_t (batch, u) and the scores α_t (batch, T_in). That is more than the cells of
    `keras.layers.RNN` are given and return: it is none of them.
    """

    def __init__(
        self, units, output_dim, activation="tanh", output_activation="softmax",
        embedding_dim=None, **kwargs,
    ):  # fmt: skip
        of_weights = {name: kwargs.pop(name, default) for name, default in WEIGHT_DEFAULTS.items()}
        super().__init__(**kwargs)
        self.units = _positive_integer("units", units)
        self.output_dim = _positive_integer("output_dim", output_dim)
        self.activation = keras.activations.get(activation)
        self.output_activation = keras.activations.get(output_activation)
        self.embedding_dim = _positive_integer("embedding_dim", embedding_dim, optional=True)
        for name, value in of_weights.items():
            setattr(self, name, _module(name).get(value))

    def build(self, x_shape, memory_shape):
        D, u, o, m = memory_shape[0][-1], self.units, self.output_dim, x_shape[-1]

        def weight(name, shape, kind):
            initializer = getattr(self, f"{kind}_initializer")
            initializer = _with_its_own_seed(initializer, len(self.weights))
            rules = {r: getattr(self, f"{kind}_{r}") for r in ("regularizer", "constraint")}
            autocast = name not in ("V_a", "E")  # _energies and _embed cast them
            variable = self.add_weight(
                name=name, shape=shape, initializer=initializer, autocast=autocast, **rules
            )
            setattr(self, name, variable)

        weight("V_a", (u,), "kernel")
        weight("W_a", (u, u), "kernel")
        weight("U_a", (D, u), "kernel")
        weight("b_a", (u,), "bias")
        for g, width in (("r", u), ("z", u), ("p", u), ("o", o)):
            weight(f"C_{g}", (D, width), "recurrent")
            weight(f"U_{g}", (u, width), "recurrent")
            weight(f"W_{g}", (m, width), "recurrent")
            weight(f"b_{g}", (width,), "bias")
        weight("W_s", (D, u), "recurrent")
        if self.embedding_dim:
            weight("E", (o, m), "kernel")

    def call(self, x, s, memory):
        U, C, W, b = self.join("rzp")
        s_t, c, alpha, _ = self.advance(ops.matmul(x, W) + b, s, memory, U, C, _energies)
        return self.output_activation(self.read_out(x, s, c)), s_t, alpha

    def join(self, gates):
        """The weights of some gates, those of one vector side by side: one product a vector."""

        def side_by_side(names):
            return ops.concatenate([getattr(self, name) for name in names], axis=-1)

        # U_p is not among them: it is multiplied by r_t ∘ s_{t-1}.
        U = side_by_side(["W_a"] + [f"U_{g}" for g in gates if g != "p"])
        C = side_by_side([f"C_{g}" for g in gates])
        W = side_by_side([f"W_{g}" for g in gates])
        b = side_by_side([f"b_{g}" for g in gates])
        return U, C, W, b

    def advance(self, xW_b, s, memory, U, C, energies):
        """From x_t W + b and s_{t-1} to s_t, c_t, α_t and o_t: (B, 0) where no "o" is joined."""
        h, k, *mask = memory
        sW_a, sU_r, sU_z, sU_o = self.split(ops.matmul(s, U))
        # e_tj = tanh(s_{t-1} W_a + k_j) · V_a
        e = energies(sW_a, k, ops.expand_dims(self.V_a, 1))  # (B, Tin)
        if mask:
            e = ops.where(mask[0], e, -3.4e38)  # about the least float32
        # α_t = softmax over j of e_t, but ops.softmax warns of one step, as which exports trace it
        alpha = ops.exp(e - ops.stop_gradient(ops.max(e, axis=-1, keepdims=True)))
        alpha = alpha / ops.sum(alpha, axis=-1, keepdims=True)
        if mask:
            alpha = ops.where(mask[0], alpha, 0)  # a sample that is all padding attends to nothing
        alpha = ops.cast(alpha, self.compute_dtype)
        # c_t = Σ_j α_tj h_j
        c = ops.squeeze(ops.matmul(ops.expand_dims(alpha, 1), h), 1)  # (B, D)
        # i_g = x_t W_g + b_g + c_t C_g for each of the gates g
        i_r, i_z, i_p, i_o = self.split(xW_b + ops.matmul(c, C))
        # r_t = σ(i_r + s_{t-1} U_r)
        r = ops.sigmoid(i_r + sU_r)  # (B, u)
        # z_t = σ(i_z + s_{t-1} U_z)
        z = ops.sigmoid(i_z + sU_z)  # (B, u)
        # p_t = activation(i_p + (r_t ∘ s_{t-1}) U_p)
        p = self.activation(i_p + ops.matmul(r * s, self.U_p))  # (B, u)
        # o_t = i_o + s_{t-1} U_o, of which output_activation makes y_t: the state BEFORE the update
        o = i_o + sU_o  # (B, o)
        # s_t = (1 - z_t) ∘ s_{t-1} + z_t ∘ p_t
        s = (1 - z) * s + z * p  # (B, u)
        return s, c, alpha, o

    def split(self, x):
        """The four parts of a product with joined weights."""
        u = self.units
        if keras.backend.backend() == "torch":  # which cannot export ops.split at indices
            return x[:, :u], x[:, u : 2 * u], x[:, 2 * u : 3 * u], x[:, 3 * u :]
        return ops.split(x, [u, 2 * u, 3 * u], axis=-1)  # XLA is slow at the gradients of slices

    def read_out(self, x, s, c):
        """o_t, for one t or for all at once: x_t W_o + s_{t-1} U_o + c_t C_o + b_o."""
        products = ops.matmul(x, self.W_o) + ops.matmul(s, self.U_o) + ops.matmul(c, self.C_o)
        return products + self.b_o  # (…, o)

    def get_config(self):
        config = super().get_config()
        for name in ("units", "output_dim", "embedding_dim"):
            config[name] = getattr(self, name)
        for name in ("activation", "output_activation", *WEIGHT_DEFAULTS):
            config[name] = _module(name).serialize(getattr(self, name))
        return config


@keras.saving.register_keras_serializable(package="attention_decoder")
class AttentionDecoder(keras.layers.Layer):
    """Decodes a sequence while attending to every step of the encoded sequence.

    With h_1 … h_Tin the encoder's outputs, s_t the decoder's state, x_t what a step is fed and y_t
    its output, all as row vectors (∘ multiplies element by element):

    ```
    s_0   = tanh(h_1 W_s)                     or initial_state
    k_j   = h_j U_a + b_a                     once per sequence
    e_tj  = tanh(s_{t-1} W_a + k_j) · V_a     how well input step j fits output step t
    α_t   = softmax over j of e_t             the attention weights, or scores
    c_t   = Σ_j α_tj h_j                      the context
    x_t   = feedback(y_{t-1}) E               or target_{t-1} E, where there are targets; x_1 = 0
    i_g   = x_t W_g + c_t C_g + b_g           for each g of r, z, p, o
    r_t   = σ(i_r + s_{t-1} U_r)
    z_t   = σ(i_z + s_{t-1} U_z)
    p_t   = activation(i_p + (r_t ∘ s_{t-1}) U_p)
    y_t   = output_activation(i_o + s_{t-1} U_o)
    s_t   = (1 - z_t) ∘ s_{t-1} + z_t ∘ p_t
    ```

    y_t is made from s_{t-1}, the state before the update, as in the paper's appendix A.2.2; one
    dense layer stands for its maxout layer. `start`, `step` and `feed` decode step by step.

    Args:
        units, output_dim: Positive integers u, the width of the state and of the attention, and o,
            that of an output.
        activation, output_activation: Of p_t and y_t, over the last axis. Default: tanh, softmax.
            For logits, "linear" with `feedback="softmax"`; for regression, "linear" alone. Without
            targets, that of y_t is asked twice for the same numbers: it must not be random.
        return_probabilities: Whether to return the scores in place of the outputs. Default: False.
        output_length: Positive integer T_out where there are no targets. Default: None, T_in. An
            export from PyTorch, whose loop keeps its length, asks for one where T_in is unknown.
        feedback: What is fed of y_{t-1} where there are no targets: None (the default) for y_{t-1}
            itself, an activation of it, or "argmax", the one-hot vector of its largest entry.
        embedding_dim: Positive integer m, for the paper's embedding E. Default: None, no E, m = o.
        dropout, seed: Rate, from 0 (the default) to below 1, at which entries of x_t and c_t are
            dropped in training, the same for all t of a call (`step` drops none), and the seed of
            the random numbers.
        unroll: Whether to unroll the loop: faster for few steps, but longer to compile, and every
            tanh is kept for the gradient. Default: False.
        kernel_*, recurrent_*, bias_*: `initializer` (glorot_uniform, orthogonal, zeros),
            `regularizer` and `constraint` of V_a, W_a, U_a and E; of C, U, W and W_s; of b.
        **kwargs: `name`, `dtype`, `trainable`: see `keras.layers.Layer`.

    Call arguments:
        encoded: The encoder's outputs, (batch, T_in, D).
        targets: Vectors (batch, T_out, o), or ids, integers below o (batch, T_out); -1 feeds zeros.
            Where o is 1, there are no ids: give floats (batch, T_out, 1). A step is fed the one
            before it (teacher forcing): give them unshifted. To keep padding out of the loss, give
            `fit` a `sample_weight` (batch, T_out) that is 0 there, behind the first END.
        mask: Boolean (batch, T_in), False at padding, whose score is 0. By default the one that
            comes with `encoded`, but from Keras 3.16 on recurrent layers pass none on: give it.
        return_attention_scores: Whether to return `(outputs, scores)`. Default: False.
        output_length, initial_state: T_out without targets, and s_0 (batch, u) or a list of it, of
            this call.
        training: Whether to drop entries, and to compute each tanh again for the gradient instead
            of keeping it (on TensorFlow, no second derivatives then).
        encoded_mask: Where Keras puts the mask that comes with `encoded`.

    Returns: The outputs (batch, T_out, o), the scores α (batch, T_out, T_in), or both; no mask.

    Raises: ValueError, if a type, a size or a shape is not as above. The values of ids are not
    checked: from o up, they feed zeros where there is no E.

    Example: letters to sounds of any lengths, padded with 0. Both models share their weights.

    >>> letters, sounds = keras.Input((None,), dtype="int32"), keras.Input((None,), dtype="int32")
    >>> mask = keras.ops.not_equal(letters, 0)
    >>> embedded = keras.layers.Embedding(27, 32)(letters)
    >>> encoded = keras.layers.GRU(64, return_sequences=True)(embedded, mask=mask)
    >>> decoder = AttentionDecoder(64, output_dim=40, feedback="argmax", embedding_dim=32)
    >>> trained = keras.Model([letters, sounds], decoder(encoded, sounds, mask=mask))
    >>> model = keras.Model(letters, decoder(encoded, mask=mask, output_length=20))
    >>> model.output_shape
    (None, 20, 40)
    """

    def __init__(
        self, units, output_dim, activation="tanh", return_probabilities=False, *,
        output_length=None, output_activation="softmax", feedback=None, embedding_dim=None,
        dropout=0.0, seed=None, unroll=False, **kwargs,
    ):  # fmt: skip
        of_weights = {name: kwargs.pop(name) for name in WEIGHT_DEFAULTS if name in kwargs}
        super().__init__(**kwargs)
        self.cell = AttentionCell(
            units, output_dim, activation, output_activation, embedding_dim, **of_weights,
            name=f"{self.name}_cell", dtype=self.dtype_policy, trainable=self.trainable,
        )  # fmt: skip
        self.return_probabilities = return_probabilities
        self.output_length = _positive_integer("output_length", output_length, optional=True)
        self.feedback = (
            feedback if feedback in (None, "argmax") else keras.activations.get(feedback)
        )
        if not (isinstance(dropout, numbers.Real) and 0 <= dropout < 1):
            raise ValueError(f"dropout must be a number from 0 to below 1, got {dropout!r}")
        self.dropout, self.seed = float(dropout), seed
        if dropout:
            self.seed_generator = keras.random.SeedGenerator(seed)
        self.unroll = unroll
        self.input_spec = keras.layers.InputSpec(ndim=3)

    @keras.layers.Layer.dtype_policy.setter
    def dtype_policy(self, policy):
        keras.layers.Layer.dtype_policy.fset(self, policy)
        self.cell.dtype_policy = policy

    def build(self, encoded_shape, targets_shape=None):  # the second for a model's summary
        x_width = self.cell.embedding_dim or self.cell.output_dim
        self.cell.build((None, x_width), (encoded_shape,))
        self.input_spec = keras.layers.InputSpec(ndim=3, axes={-1: encoded_shape[-1]})

    def call(
        self, encoded, targets=None, mask=None, return_attention_scores=False, *,
        encoded_mask=None, output_length=None, initial_state=None, training=False,
    ):  # fmt: skip
        cell = self.cell
        U, C, W, b = cell.join("rzpo" if targets is None else "rzp")
        x, s, memory = self.start(encoded, encoded_mask if mask is None else mask, initial_state)
        if targets is not None:
            targets = self._embed("targets", targets, encoded.shape[0], None)  # (B, Tout, m)
        kept = None
        if self.dropout and training:  # the same for all t; c_t is linear in h, so h can lose parts
            kept, kept_h = (
                keras.random.dropout(ops.ones_like(t), self.dropout, seed=self.seed_generator)
                for t in (x, memory[0][:, 0])
            )
            memory = (memory[0] * kept_h[:, None], *memory[1:])
        # Each tanh is computed again for the gradient: they are B · Tout · Tin · u numbers.
        # In a keras.RematScope on JAX (without dropout), `training` is neither True nor False.
        remat = training is not False and not self.unroll
        energies = keras.remat(_energies) if remat else _energies
        with_scores = bool(return_attention_scores or self.return_probabilities)

        def forced(xW_b, states):
            (s,) = states
            s_t, c, alpha, _ = cell.advance(xW_b, s, memory, U, C, energies)
            return [s, c] + [alpha] * with_scores, [s_t]

        def free(_, states):
            x, s = states
            xW_b = ops.matmul(x, W) + b
            s_t, _, alpha, o = cell.advance(xW_b, s, memory, U, C, energies)
            x = self.feed(cell.output_activation(o))
            x = x if kept is None else x * kept
            return [o] + [alpha] * with_scores, [x, s_t]

        if targets is None:
            length = self._steps_out(ops.shape(encoded)[1], output_length)
            _refuse_unknown_length(length)
            no_input = ops.zeros((ops.shape(x)[0], length, 1), dtype=x.dtype)
            o, *alpha = self._loop(free, no_input, [x, s])
        else:  # nothing of y is fed back: its products are made for all t at once
            _refuse_unknown_length(ops.shape(targets)[1])
            x = ops.concatenate([x[:, None], targets], axis=1)[:, :-1]
            x = x if kept is None else x * kept[:, None]
            s, c, *alpha = self._loop(forced, ops.matmul(x, W) + b, [s])
            o = cell.read_out(x, s, c)
        # Outside of the loop, also where a step made y_t: there the loss finds a softmax's logits.
        outputs = alpha[0] if self.return_probabilities else cell.output_activation(o)
        return (outputs, alpha[0]) if return_attention_scores else outputs

    def start(self, encoded, mask, initial_state=None):
        """Returns what decoding starts with: x_1 = 0 (batch, m), s_0 (batch, u) and the memory.

        The memory, a tuple of tensors (batch, T_in, …), stays the same. For k beams, repeat all:
        `keras.tree.map_structure(lambda t: keras.ops.repeat(t, k, axis=0), (x, s, memory))`.

        Args:
            encoded: The encoder's outputs, (batch, T_in, D).
            mask: Boolean (batch, T_in), False at padding; None for none, whatever `encoded` has.
            initial_state: s_0 in place of tanh(h_1 W_s).
        """
        encoded, mask, initial_state = self._checked_start(encoded, mask, initial_state)
        _refuse_symbolic("start", encoded, mask, initial_state)
        if not self.built:
            self.build(encoded.shape)
        dtype = self.compute_dtype
        h = ops.cast(encoded, dtype)  # (B, Tin, D)
        h_1 = h[:, 0]  # (B, D)
        if mask is not None:
            mask = ops.cast(mask, "bool")
            h = ops.where(mask[:, :, None], h, 0)  # clears even a NaN
            first = ops.cumsum(ops.cast(mask, "int32"), axis=1) == 1  # and at padding after it, a 0
            h_1 = ops.sum(ops.where(first[:, :, None], h, 0), axis=1)
        # k_j = h_j U_a + b_a
        cell = self.cell
        k = ops.matmul(h, ops.cast(cell.U_a, dtype)) + ops.cast(cell.b_a, dtype)  # (B, Tin, u)
        # s_0 = tanh(h_1 W_s)
        s_0 = ops.tanh(ops.matmul(h_1, ops.cast(cell.W_s, dtype)))  # (B, u)
        if initial_state is not None:
            s_0 = ops.cast(initial_state, dtype)
        # x_1 = 0
        x_1 = ops.zeros((ops.shape(h)[0], cell.embedding_dim or cell.output_dim), dtype=dtype)
        return x_1, s_0, (h, k) if mask is None else (h, k, mask)

    def step(self, x, s, memory):
        """Returns y_t (batch, o), s_t (batch, u) and the scores α_t (batch, T_in).

        >>> x, s, memory = decoder.start(encoded, mask)
        >>> for t in range(output_length):  # gives what decoder(encoded, mask=mask) gives
        ...     y, s, scores = decoder.step(x, s, memory)
        ...     x = decoder.feed(y)
        """
        return self.cell(x, s, memory)

    def feed(self, y):
        """Returns x_{t+1} (batch, m): what the next step is fed.

        Args:
            y: y_t (batch, o), which goes through `feedback`; or ids, integers (batch,), the symbols
                that were chosen, -1 for zeros.
        """
        y = _tensor("y", y)
        _refuse_symbolic("feed", y)
        if self.feedback is not None and not self._are_ids("y", y, None):
            y = _argmax(y) if self.feedback == "argmax" else self.feedback(y)
        return self._embed("y", y, None)

    def _checked_start(self, encoded, mask, initial_state):
        """The arguments of `start` as tensors. Raises ValueError, if they do not fit."""
        encoded = _tensor("encoded", encoded)
        _check_shape("encoded", encoded, None, None, self.cell.C_r.shape[0] if self.built else None)
        batch, steps_in = encoded.shape[:2]
        mask = _tensor("mask", mask)
        if mask is not None:
            _check_shape("mask", mask, batch, steps_in)
        if isinstance(initial_state, (list, tuple)):  # as keras.layers.GRU takes it
            if len(initial_state) != 1:
                raise ValueError(
                    "initial_state must be one tensor (batch, u), or a list of one, got "
                    f"{len(initial_state)}: of the states [h, c] of an LSTM, give h"
                )
            (initial_state,) = initial_state
        initial_state = _tensor("initial_state", initial_state)
        if initial_state is not None:
            _check_shape("initial_state", initial_state, batch, self.cell.units)
        return encoded, mask, initial_state

    def _are_ids(self, name, y, *shape):
        """Whether y are ids, integers of this shape, and not vectors, floats of (*shape, o)."""
        ids, o, rank = keras.backend.is_int_dtype(y.dtype), self.cell.output_dim, len(shape)
        if len(y.shape) != (rank if ids else rank + 1) or (ids and o == 1):
            right = f"integers of rank {rank} (ids) or floats of rank {rank + 1} (vectors)"
            if o == 1:
                right = f"floats of rank {rank + 1}, the last axis 1, where output_dim is 1"
            dtype = keras.backend.standardize_dtype(y.dtype)
            raise ValueError(f"{name} must be {right}, got {dtype} of shape {tuple(y.shape)}")
        _check_shape(name, y, *shape, *([] if ids else [o]))
        return ids

    def _embed(self, name, y, *shape):
        """y E, for vectors or ids y."""
        E, dtype = self.cell.E if self.cell.embedding_dim else None, self.compute_dtype
        y = _tensor(name, y)
        if not self._are_ids(name, y, *shape):
            y = ops.cast(y, dtype)
            return y if E is None else ops.matmul(y, ops.cast(E, dtype))
        if E is None:
            return ops.one_hot(y, self.cell.output_dim, dtype=dtype)  # of -1: zeros
        x = ops.cast(ops.take(E, ops.maximum(y, 0), axis=0), dtype)
        return ops.where(y[..., None] >= 0, x, 0)

    def _loop(self, step, sequence, states):
        """Returns step's outputs, a list of tensors (batch, T_out, …), for all t of the sequence.

        `step` makes of x_t and the list of states two lists: outputs (batch, …) and new states.
        """
        cell = _LoopCell(step, states, self.compute_dtype)
        if self.unroll or keras.backend.backend() == "torch":  # whose loops are Python's anyway
            outputs = []
            for x in ops.unstack(sequence, axis=1):
                output, states = cell(x, states)
                outputs.append(output)
            outputs = ops.stack(outputs, axis=1)
        else:
            rnn = keras.layers.RNN(
                cell, return_sequences=True, dtype=self.compute_dtype, name="loop"
            )
            # Not rnn(…), which would use the cell once more, and later, in a keras.RematScope.
            outputs = rnn.call(sequence, initial_state=states)
            rnn.cell = None  # else a cycle of references keeps the batch until it is collected
        ends = [sum(cell.widths[:i]) for i in range(len(cell.widths))] + [None]
        return [outputs[..., a:b] for a, b in zip(ends, ends[1:])]

    def compute_output_shape(
        self, encoded_shape, targets_shape=None, return_attention_scores=False, output_length=None
    ):
        batch, steps_in = encoded_shape[:2]
        if targets_shape is None:
            steps_out = self._steps_out(steps_in, output_length)
        else:
            steps_out = targets_shape[1]
        scores = (batch, steps_out, steps_in)
        outputs = scores if self.return_probabilities else (batch, steps_out, self.cell.output_dim)
        return (outputs, scores) if return_attention_scores else outputs

    def compute_output_spec(
        self, encoded, targets=None, mask=None, return_attention_scores=False, *,
        encoded_mask=None, output_length=None, initial_state=None, training=False,
    ):  # fmt: skip
        self._checked_start(encoded, mask, initial_state)
        if targets is not None:
            targets = _tensor("targets", targets)
            self._are_ids("targets", targets, encoded.shape[0], None)
        shapes = self.compute_output_shape(
            encoded.shape, getattr(targets, "shape", None), return_attention_scores, output_length
        )
        return keras.tree.map_shape_structure(
            lambda shape: keras.KerasTensor(shape, self.compute_dtype), shapes
        )

    def _steps_out(self, steps_in, output_length):
        """T_out where there are no targets."""
        output_length = _positive_integer("output_length", output_length, optional=True)
        return output_length or self.output_length or steps_in

    def compute_mask(self, inputs, previous_mask):
        return None  # the input's mask says nothing about the output steps

    def get_config(self):
        config = {**self.cell.get_config(), **super().get_config()}
        for name in ("return_probabilities", "output_length", "dropout", "seed", "unroll"):
            config[name] = getattr(self, name)
        f = self.feedback
        return {**config, "feedback": keras.activations.serialize(f) if callable(f) else f}


class _LoopCell:
    """What `keras.layers.RNN` asks of a cell, for the step function of one call."""

    def __init__(self, step, states, compute_dtype):
        self.step, self.compute_dtype = step, compute_dtype
        self.state_size = [state.shape[-1] for state in states]

    def __call__(self, x, states):
        outputs, states = self.step(x, states)
        self.widths = [output.shape[-1] for output in outputs]
        return ops.concatenate(outputs, axis=-1), states

    call = __call__


def _energies(sW_a, k, V_a):
    """e_t = tanh(s_{t-1} W_a + k_j) · V_a, V_a as (u, 1), in no less than float32: no overflow."""
    dtype = keras.backend.standardize_dtype(k.dtype)
    dtype = "float32" if dtype in ("float16", "bfloat16") else dtype
    tanh = ops.cast(ops.tanh(ops.expand_dims(sW_a, 1) + k), dtype)  # (B, Tin, u)
    return ops.squeeze(ops.matmul(tanh, ops.cast(V_a, dtype)), 2)  # (B, Tin)


def _refuse_symbolic(method, *tensors):
    if any(isinstance(tensor, keras.KerasTensor) for tensor in tensors):
        raise ValueError(
            f"{method} must be given tensors, not a keras.Input: write a keras.Model with a call "
            "that uses it, which then has the layer's weights"
        )


def _refuse_unknown_length(length):
    """Exports from PyTorch trace it as a tensor that is 1, and the loop would stay so short."""
    if keras.backend.backend() == "torch" and not isinstance(length, int) and length == 1:
        raise ValueError(
            "output_length must be given in an export from PyTorch, whose loop keeps its length; "
            "it takes no targets of unknown length"
        )


def _check_shape(name, tensor, *shape):
    got = tuple(tensor.shape)
    if len(got) != len(shape) or any(a != b and None not in (a, b) for a, b in zip(got, shape)):
        raise ValueError(f"{name} must have the shape {shape}, got {got}")


def _tensor(name, x):
    """An array or a list of numbers as a tensor; None and a keras.Input as they are."""
    if isinstance(x, (list, tuple)) and any(isinstance(t, keras.KerasTensor) for t in x):
        raise ValueError(f"{name} must be one tensor, got a list of {len(x)}")
    return x if x is None or isinstance(x, keras.KerasTensor) else ops.convert_to_tensor(x)


def _argmax(y):
    """The first of the largest, without ops.argmax of floats, which ONNX and LiteRT lack."""
    largest = ops.equal(y, ops.max(y, axis=-1, keepdims=True))
    return ops.argmax(ops.cast(largest, "int32"), axis=-1)


def _with_its_own_seed(initializer, n):
    """The initializer for the n-th weight: one used again would draw the same numbers again.

    Not so where it has no seed, or one that is a generator.
    """
    config = initializer.get_config() if hasattr(initializer, "get_config") else {}
    if "seed" not in config or isinstance(config["seed"], dict):
        return initializer
    seed = config["seed"]
    return initializer.from_config({**config, "seed": None if seed is None else seed + n})


def _module(name):
    """keras.initializers, keras.regularizers, … for the name of an argument that ends so."""
    return getattr(keras, name.rsplit("_", 1)[-1] + "s")


def _positive_integer(name, value, optional=False):
    if optional and value is None:
        return None
    if not isinstance(value, numbers.Integral) or isinstance(value, bool) or value < 1:
        raise ValueError(f"{name} must be a positive integer, got {value!r}")
    return int(value)
