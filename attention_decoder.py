"""Custom Keras Attention Layer: the article's section 4 (自定义Keras注意层).

`AttentionDecoder` is the decoder of Bahdanau, Cho & Bengio, "Neural Machine Translation by Jointly
Learning to Align and Translate" (arXiv:1409.0473, appendix A), as a Keras layer. Copy this file
into your project: it needs Keras (3.10 or later) and Python 3.9 or later, and runs on TensorFlow,
JAX and PyTorch.
"""

# SPDX-License-Identifier: MIT
# Part of "Attention, read along". Copyright (c) 2026 the authors of that repository. MIT License.

import numbers
import operator

import keras
from keras import ops

__version__ = "2026.11"  # what has changed since the last one: docs/layer.md of that repository


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
    i_g   = x_t W_g + c_t C_g + b_g           for each g of r, z and p
    r_t   = σ(i_r + s_{t-1} U_r)
    z_t   = σ(i_z + s_{t-1} U_z)
    p_t   = activation(i_p + (r_t ∘ s_{t-1}) U_p)
    o_t   = x_t W_o + s_{t-1} U_o + c_t C_o + b_o
    y_t   = output_activation(o_t)
    s_t   = (1 - z_t) ∘ s_{t-1} + z_t ∘ p_t
    x_t+1 = feedback(y_t) E                   or target_t E, where there are targets; x_1 = 0
    ```

    y_t is made from s_{t-1}, the state before the update, as in the paper's appendix A.2.2; one
    dense layer stands for its maxout layer. `start`, `step` and `feed` decode step by step.

    Args:
        units, output_dim: Positive integers u, the width of the state and of the attention, and o,
            that of an output.
        activation, output_activation: Of p_t and y_t, over the last axis. Default: tanh, softmax.
            For logits, "linear" with `feedback="softmax"`; for regression, "linear" alone. Without
            targets, that of y_t is computed in the loop and after it: it must not be random.
        return_probabilities: Whether to return the scores in place of the outputs. Default: False.
        output_length: Positive integer T_out where there are no targets. Default: None, T_in. An
            export from PyTorch, whose loop keeps its length, asks for one where T_in is unknown.
        feedback: What is fed of y_{t-1} where there are no targets: None (the default) for y_{t-1}
            itself, an activation of it, or "argmax", the one-hot vector of its largest entry.
        embedding_dim: Positive integer m, for the paper's embedding E. Default: None, no E, m = o.
        dropout, seed: Rate, from 0 (the default) to below 1, at which entries of x_t and c_t are
            dropped in training, the same for all t of a call (`step` drops none), and the seed of
            the random numbers.
        unroll: Whether to unroll the loop, whose length must be known then: faster for few steps,
            but longer to compile, and every tanh is kept for the gradient. Default: False.
        kernel_*, recurrent_*, bias_*: `initializer` (glorot_uniform, orthogonal, zeros),
            `regularizer` and `constraint` of V_a, W_a, U_a and E; of C, U, W and W_s; of b.
        **kwargs: `name`, `dtype`, `trainable`: see `keras.layers.Layer`.

    Call arguments:
        encoded: The encoder's outputs, (batch, T_in, D).
        targets: Vectors (batch, T_out, o), or ids, integers below o (batch, T_out); -1 feeds zeros.
            Where o is 1, there are no ids: give floats (batch, T_out, 1). A step is fed the one
            before it (teacher forcing): give them unshifted. To keep padding out of the loss, give
            `fit` a `sample_weight` (batch, T_out) that is 0 there.
        mask: Boolean (batch, T_in), False at padding, whose score is 0; h_1 is then the first step
            that is no padding. By default the mask that comes with `encoded`, but from Keras 3.16
            on recurrent layers pass none on: give it.
        return_attention_scores: Whether to return `(outputs, scores)`. Default: False.
        output_length, initial_state: T_out, an integer of known value, not used where there are
            targets; and s_0 (batch, u) or a list of it. Both of this call.
        training: Whether to drop entries, and to compute each tanh again for the gradient instead
            of keeping it (on TensorFlow, no second derivatives then).
        encoded_mask: Where Keras puts the mask that comes with `encoded`.

    Returns: The outputs (batch, T_out, o), the scores α (batch, T_out, T_in), or both; no mask.

    Raises: ValueError, if a type, a size or a shape is not as above, or there is no step in or out.
        The values of ids are not checked: what one from o up feeds depends on the backend.

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
        dropout=0.0, seed=None, unroll=False,
        kernel_initializer="glorot_uniform", recurrent_initializer="orthogonal",
        bias_initializer="zeros",
        kernel_regularizer=None, recurrent_regularizer=None, bias_regularizer=None,
        kernel_constraint=None, recurrent_constraint=None, bias_constraint=None, **kwargs,
    ):  # fmt: skip
        super().__init__(**kwargs)
        self.units = _positive_integer("units", units)
        self.output_dim = _positive_integer("output_dim", output_dim)
        self.activation = keras.activations.get(activation)
        self.return_probabilities = return_probabilities
        self.output_length = _positive_integer("output_length", output_length, optional=True)
        self.output_activation = keras.activations.get(output_activation)
        self.feedback = (
            feedback if feedback in (None, "argmax") else keras.activations.get(feedback)
        )
        self.embedding_dim = _positive_integer("embedding_dim", embedding_dim, optional=True)
        self._x_dim = self.embedding_dim or self.output_dim  # m, the width of x_t
        if not (isinstance(dropout, numbers.Real) and 0 <= dropout < 1):
            raise ValueError(f"dropout must be a number from 0 to below 1, got {dropout!r}")
        self.dropout, self.seed = float(dropout), seed
        if dropout:
            self.seed_generator = keras.random.SeedGenerator(seed)
        self.unroll = unroll
        self.kernel_initializer = keras.initializers.get(kernel_initializer)
        self.recurrent_initializer = keras.initializers.get(recurrent_initializer)
        self.bias_initializer = keras.initializers.get(bias_initializer)
        self.kernel_regularizer = keras.regularizers.get(kernel_regularizer)
        self.recurrent_regularizer = keras.regularizers.get(recurrent_regularizer)
        self.bias_regularizer = keras.regularizers.get(bias_regularizer)
        self.kernel_constraint = keras.constraints.get(kernel_constraint)
        self.recurrent_constraint = keras.constraints.get(recurrent_constraint)
        self.bias_constraint = keras.constraints.get(bias_constraint)
        self.input_spec = keras.layers.InputSpec()  # one tensor; `_tensor` checks its shape

    def build(self, encoded_shape, targets_shape=None):  # the second for a model's summary
        """Makes the weights, in the order of `get_weights()`."""
        _check_shape("encoded", encoded_shape, None, None, None)
        D, u, o, m = encoded_shape[-1], self.units, self.output_dim, self._x_dim

        def weight(name, shape, kind):
            initializer = getattr(self, f"{kind}_initializer")
            seed = getattr(initializer, "seed", None)
            if isinstance(seed, int) and hasattr(initializer, "clone"):
                initializer = initializer.clone()  # with a new seed, where the user gave none
                if initializer.seed == seed:
                    initializer.seed += len(self.weights)  # the same would draw the same numbers
            return self.add_weight(
                name=name, shape=shape, initializer=initializer,
                regularizer=getattr(self, f"{kind}_regularizer"),
                constraint=getattr(self, f"{kind}_constraint"),
                autocast=name not in ("V_a", "E"),  # of full precision until they are used
            )  # fmt: skip

        self.V_a = weight("V_a", (u,), "kernel")
        self.W_a = weight("W_a", (u, u), "kernel")
        self.U_a = weight("U_a", (D, u), "kernel")
        self.b_a = weight("b_a", (u,), "bias")
        self.C_r = weight("C_r", (D, u), "recurrent")
        self.U_r = weight("U_r", (u, u), "recurrent")
        self.W_r = weight("W_r", (m, u), "recurrent")
        self.b_r = weight("b_r", (u,), "bias")
        self.C_z = weight("C_z", (D, u), "recurrent")
        self.U_z = weight("U_z", (u, u), "recurrent")
        self.W_z = weight("W_z", (m, u), "recurrent")
        self.b_z = weight("b_z", (u,), "bias")
        self.C_p = weight("C_p", (D, u), "recurrent")
        self.U_p = weight("U_p", (u, u), "recurrent")
        self.W_p = weight("W_p", (m, u), "recurrent")
        self.b_p = weight("b_p", (u,), "bias")
        self.C_o = weight("C_o", (D, o), "recurrent")
        self.U_o = weight("U_o", (u, o), "recurrent")
        self.W_o = weight("W_o", (m, o), "recurrent")
        self.b_o = weight("b_o", (o,), "bias")
        self.W_s = weight("W_s", (D, u), "recurrent")
        self.E = weight("E", (o, m), "kernel") if self.embedding_dim else None

    # The equations; those of y_t and x_t+1 are in step, feed and call

    def start(self, encoded, mask, initial_state=None):
        """Returns what decoding starts with: x_1 = 0 (batch, m), s_0 (batch, u) and the memory.

        The memory, a tuple of tensors (batch, T_in, …), stays the same. For k beams, repeat all:
        `keras.tree.map_structure(lambda t: keras.ops.repeat(t, k, axis=0), (x, s, memory))`.

        Args:
            encoded: The encoder's outputs, (batch, T_in, D).
            mask: Boolean (batch, T_in), False at padding; None for none, whatever `encoded` has.
            initial_state: s_0 in place of tanh(h_1 W_s).
        """
        encoded, mask, initial_state = self._start_arguments(encoded, mask, initial_state)
        _refuse_symbolic(encoded, mask, initial_state)
        if not self.built:
            self.build(encoded.shape)
        h = self._cast(encoded)  # (B, Tin, D)
        h_1 = h[:, 0]  # (B, D)
        if mask is not None:
            mask = ops.cast(mask, "bool")
            h = ops.where(mask[:, :, None], h, 0)  # clears even a NaN
            first = ops.cumsum(ops.cast(mask, "int32"), axis=1) == 1  # and at padding after it, a 0
            # A product, as LiteRT's int8 would get the sum of ops.where(first, h, 0) wrong.
            h_1 = ops.squeeze(ops.matmul(self._cast(first)[:, None], h), 1)
        # x_1 = 0
        x_1 = ops.zeros((ops.shape(h)[0], self._x_dim), dtype=self.compute_dtype)
        # s_0 = tanh(h_1 W_s), or initial_state
        s_0 = ops.tanh(ops.matmul(h_1, self._cast(self.W_s)))  # (B, u)
        if initial_state is not None:
            s_0 = self._cast(initial_state)
        # k_j = h_j U_a + b_a
        k = ops.matmul(h, self._cast(self.U_a)) + self._cast(self.b_a)  # (B, Tin, u)
        return x_1, s_0, (h, k) if mask is None else (h, k, mask)

    def _attend(self, sW_a, memory, remat):
        """Returns c_t (B, D) and α_t (B, Tin). With `remat`, the gradient computes tanh again."""
        h, k, *mask = memory
        dtype = keras.backend.result_type(self.compute_dtype, "float32")  # in which no e overflows

        def energies(sW_a, k, V_a):  # what it closed over would get a wrong gradient from remat
            tanh = ops.tanh(ops.expand_dims(sW_a, 1) + k)  # (B, Tin, u)
            return ops.squeeze(ops.matmul(ops.cast(tanh, dtype), V_a), 2)

        # e_tj = tanh(s_{t-1} W_a + k_j) · V_a
        V_a = ops.expand_dims(ops.cast(self.V_a, dtype), 1)  # (u, 1)
        e = (keras.remat(energies) if remat else energies)(sW_a, k, V_a)  # (B, Tin)
        if mask:
            # Padding gets e^-40 of the largest score: none. -1e9 in place of -40 would do, too, but
            # leave an int8 model no numbers by which to tell the other scores apart.
            e = e - _of_each_row(ops.max, ops.where(mask[0], e, _of_each_row(ops.min, e)))
            e = ops.where(mask[0], e, -40)
        # α_t = softmax over j of e_t
        alpha = ops.exp(ops.log_softmax(e))  # where T_in is 1, ops.softmax warns
        if mask:
            alpha = ops.where(mask[0], alpha, 0)  # a sample that is all padding attends to nothing
        alpha = self._cast(alpha)  # (B, Tin)
        # c_t = Σ_j α_tj h_j
        c = ops.squeeze(ops.matmul(ops.expand_dims(alpha, 1), h), 1)  # (B, D)
        return c, alpha

    def _advance(self, xW_b, s, memory, U, C, remat=False):
        """Returns s_t (B, u), c_t (B, D), α_t (B, Tin) and o_t (B, o).

        xW_b is x_t W + b, and W, b, U and C are of `_joined`. Where these are of r, z and p alone,
        o_t is empty, (B, 0): `_readout` makes it.
        """
        sW_a, sU_r, sU_z, sU_o = self._split(ops.matmul(s, U))
        c, alpha = self._attend(sW_a, memory, remat)
        # i_g = x_t W_g + c_t C_g + b_g, also for o, where it is joined
        i_r, i_z, i_p, i_o = self._split(xW_b + ops.matmul(c, C))
        # r_t = σ(i_r + s_{t-1} U_r)
        r = ops.sigmoid(i_r + sU_r)  # (B, u)
        # z_t = σ(i_z + s_{t-1} U_z)
        z = ops.sigmoid(i_z + sU_z)  # (B, u)
        # p_t = activation(i_p + (r_t ∘ s_{t-1}) U_p)
        p = self.activation(i_p + ops.matmul(r * s, self._cast(self.U_p)))  # (B, u)
        # o_t = i_o + s_{t-1} U_o, as in _readout; empty where o is not joined
        o = i_o + sU_o  # (B, o) or (B, 0)
        # s_t = (1 - z_t) ∘ s_{t-1} + z_t ∘ p_t
        s = (1 - z) * s + z * p  # (B, u)
        return s, c, alpha, o

    def _readout(self, x, s, c):
        """Returns o_t (B, o), of x_t, s_{t-1} and c_t; also for all t at once, (B, Tout, o)."""
        xW_o = ops.matmul(x, self._cast(self.W_o))
        sU_o = ops.matmul(s, self._cast(self.U_o))  # the state before the update
        cC_o = ops.matmul(c, self._cast(self.C_o))
        # o_t = x_t W_o + s_{t-1} U_o + c_t C_o + b_o
        return xW_o + sU_o + cC_o + self._cast(self.b_o)

    def _joined(self, gates):
        """W, b, U and C of r, z, p (and o) side by side: x_t, s_{t-1}, c_t take one product each.

        U starts with W_a, and lacks U_p, which r_t ∘ s_{t-1} takes.
        """

        def side_by_side(names):
            return ops.concatenate([self._cast(getattr(self, name)) for name in names], axis=-1)

        W = side_by_side([f"W_{g}" for g in gates])  # of x_t
        b = side_by_side([f"b_{g}" for g in gates])
        U = side_by_side(["W_a"] + [f"U_{g}" for g in gates if g != "p"])  # of s_{t-1}
        C = side_by_side([f"C_{g}" for g in gates])  # of c_t
        return W, b, U, C

    def _split(self, x):
        """The parts of a product with joined weights: three (B, u), and (B, o) or (B, 0)."""
        u = self.units
        if keras.backend.backend() == "torch":  # which cannot export a split into unequal parts
            return x[:, :u], x[:, u : 2 * u], x[:, 2 * u : 3 * u], x[:, 3 * u :]
        return ops.split(x, [u, 2 * u, 3 * u], axis=-1)  # XLA is slow at the gradients of slices

    # One step, by hand

    def step(self, x, s, memory):
        """Returns y_t (batch, o), s_t (batch, u) and the scores α_t (batch, T_in).

        Args:
            x: x_t (batch, m), from `start` or `feed`.
            s: s_{t-1} (batch, u), from `start` or the step before.
            memory: That of `start`.

        >>> x, s, memory = decoder.start(encoded, mask)
        >>> for t in range(output_length):  # gives what decoder(encoded, mask=mask) gives
        ...     y, s, scores = decoder.step(x, s, memory)
        ...     x = decoder.feed(y)
        """
        _refuse_symbolic(x, s, *memory)
        self._refuse_unbuilt()
        x = self._cast(_tensor("x", x, None, self._x_dim))
        s = self._cast(_tensor("s", s, None, self.units))
        h, k, *mask = memory
        memory = (self._cast(h), self._cast(k), *mask)
        W, b, U, C = self._joined("rzp")  # a copy at every step: not of the readout, maybe large
        s_t, c, alpha, _ = self._advance(ops.matmul(x, W) + b, s, memory, U, C)
        # y_t = output_activation(o_t)
        return self.output_activation(self._readout(x, s, c)), s_t, alpha

    def feed(self, y):
        """Returns x_{t+1} (batch, m): what the next step is fed.

        Args:
            y: y_t (batch, o), which goes through `feedback`; or ids, integers (batch,), the symbols
                that were chosen, -1 for zeros.
        """
        y = self._ids_or_vectors("y", y, None)
        _refuse_symbolic(y)
        self._refuse_unbuilt()
        if self.feedback is not None and not _are_ids(y):
            y = _argmax(y) if self.feedback == "argmax" else self.feedback(y)
        # x_t+1 = feedback(y_t) E
        return self._embed(y)

    def _embed(self, y):
        """y E, for ids or vectors y; the vectors, where there is no E."""
        if not _are_ids(y):
            y = self._cast(y)
            return y if self.E is None else ops.matmul(y, self._cast(self.E))
        if self.E is None:
            return ops.one_hot(y, self.output_dim, dtype=self.compute_dtype)  # of -1: zeros
        ids = ops.cast(ops.maximum(y, 0), "int32")  # TensorFlow takes no smaller integers
        x = self._cast(ops.take(self.E, ids, axis=0))
        return ops.where(y[..., None] >= 0, x, 0)

    # The loop over all steps

    def __call__(self, *args, **kwargs):
        if "output_length" in kwargs:  # Keras would make a tensor of NumPy's, and trace it
            length = kwargs["output_length"]
            kwargs["output_length"] = _positive_integer("output_length", length, optional=True)
        return super().__call__(*args, **kwargs)

    def call(
        self, encoded, targets=None, mask=None, return_attention_scores=False, *,
        encoded_mask=None, output_length=None, initial_state=None, training=False,
    ):  # fmt: skip
        x, s, memory = self.start(encoded, encoded_mask if mask is None else mask, initial_state)
        # A readout that is fed back is made in the loop, where it trains faster joined.
        W, b, U, C = self._joined("rzpo" if targets is None else "rzp")
        # The gradient computes each tanh of `_attend`, (B, Tin, u), again: they are not kept.
        # In a keras.RematScope on JAX, `training` is traced: neither True nor False.
        remat = training is not False and not self.unroll
        drop_x = None
        if self.dropout and training:  # the same entries for all t
            h, *others = memory
            drop_x, drop_h = (  # (B, m) and (B, D): 0, or 1 / (1 - dropout)
                keras.random.dropout(ops.ones_like(t), self.dropout, seed=self.seed_generator)
                for t in (x, h[:, 0])
            )
            memory = (h * drop_h[:, None], *others)  # c_t is linear in h: it loses the same entries

        def free(_, states):
            x, s = states
            s_t, _, alpha, o = self._advance(ops.matmul(x, W) + b, s, memory, U, C, remat)
            # y_t = output_activation(o_t)
            x = self.feed(self.output_activation(o))
            return [o, alpha], [x if drop_x is None else x * drop_x, s_t]

        def forced(xW_b, states):
            (s,) = states
            s_t, c, alpha, _ = self._advance(xW_b, s, memory, U, C, remat)
            return [s, c, alpha], [s_t]

        if targets is None:
            length = self._steps_out(ops.shape(encoded)[1], output_length)
            _refuse_unknown_length(length)
            no_input = ops.zeros((ops.shape(x)[0], length, 1), dtype=self.compute_dtype)
            o, scores = self._loop(free, no_input, [x, s], [self.output_dim])
        else:  # nothing of y is fed back: what the loop does not need is made for all t at once
            # x_t+1 = target_t E
            targets = self._embed(self._ids_or_vectors("targets", targets, encoded.shape[0], None))
            _refuse_unknown_length(ops.shape(targets)[1])
            x = ops.concatenate([x[:, None], targets], axis=1)[:, :-1]  # (B, Tout, m)
            x = x if drop_x is None else x * drop_x[:, None]
            ends = [self.units, self.units + encoded.shape[-1]]
            s, c, scores = self._loop(forced, ops.matmul(x, W) + b, [s], ends)
            o = self._readout(x, s, c)  # (B, Tout, o)
        # y_t = output_activation(o_t), for all t, once more where the loop has fed it: Keras' loss
        # finds the logits of a softmax outside of the loop alone.
        outputs = scores if self.return_probabilities else self.output_activation(o)
        return (outputs, scores) if return_attention_scores else outputs

    def _loop(self, step, x, states, ends):
        """Returns a list of what the steps put out, (B, Tout, …) each.

        `step` takes x_t and a list of states. It returns such a list, (B, …) each, and the next
        states. The loop joins the list; `ends` is where each but the last of it ends.
        """
        if self.unroll or keras.backend.backend() == "torch":  # whose loops are Python's anyway
            outputs = []
            for x_t in ops.unstack(x, axis=1):
                outputs_t, states = step(x_t, states)
                outputs.append(outputs_t)
            return [ops.stack(output, axis=1) for output in zip(*outputs)]
        cell = _LoopCell(step, states)
        rnn = keras.layers.RNN(cell, return_sequences=True, dtype=self.compute_dtype, name="loop")
        # Not rnn(…), which would use the cell once more, and later, in a keras.RematScope.
        joined = rnn.call(x, initial_state=states)
        rnn.cell = None  # else a cycle of references keeps the batch until it is collected
        return [joined[..., a:b] for a, b in zip([0, *ends], [*ends, None])]

    # What Keras asks of a layer

    def compute_output_shape(
        self, encoded_shape, targets_shape=None, return_attention_scores=False, output_length=None
    ):
        batch, steps_in = encoded_shape[:2]
        steps_out = self._steps_out(steps_in, output_length)  # refuses a bad one with targets, too
        if targets_shape is not None:
            steps_out = targets_shape[1]
        scores = (batch, steps_out, steps_in)
        outputs = scores if self.return_probabilities else (batch, steps_out, self.output_dim)
        return (outputs, scores) if return_attention_scores else outputs

    def compute_output_spec(
        self, encoded, targets=None, mask=None, return_attention_scores=False, *,
        encoded_mask=None, output_length=None, initial_state=None, training=False,
    ):  # fmt: skip
        self._start_arguments(encoded, mask, initial_state)
        if targets is not None:
            targets = self._ids_or_vectors("targets", targets, encoded.shape[0], None)
        shapes = self.compute_output_shape(
            encoded.shape, getattr(targets, "shape", None), return_attention_scores, output_length
        )
        return keras.tree.map_shape_structure(
            lambda shape: keras.KerasTensor(shape, self.compute_dtype), shapes
        )

    def compute_mask(self, inputs, previous_mask):
        return None  # the input's mask says nothing about the output steps

    def get_config(self):
        config = super().get_config()
        for name in (
            "units", "output_dim", "return_probabilities", "output_length", "embedding_dim",
            "dropout", "seed", "unroll",
        ):  # fmt: skip
            config[name] = getattr(self, name)
        for name in ("activation", "output_activation", "feedback"):
            value = getattr(self, name)
            config[name] = keras.activations.serialize(value) if callable(value) else value
        for kind in ("kernel", "recurrent", "bias"):
            for rule in ("initializer", "regularizer", "constraint"):
                name = f"{kind}_{rule}"
                config[name] = keras.saving.serialize_keras_object(getattr(self, name))
        return config

    @classmethod
    def from_config(cls, config):
        if "go_backwards" in config:  # which keras.layers.Bidirectional puts there
            raise ValueError(
                "An AttentionDecoder cannot go backwards: put the encoder into the Bidirectional, "
                "and the decoder behind it"
            )
        return super().from_config(config)

    # The arguments

    def _cast(self, x):
        return ops.cast(x, self.compute_dtype)

    def _steps_out(self, steps_in, output_length):
        """T_out where there are no targets."""
        output_length = _positive_integer("output_length", output_length, optional=True)
        return output_length or self.output_length or steps_in

    def _start_arguments(self, encoded, mask, initial_state):
        """The arguments of `start` as tensors, or a ValueError."""
        D = self.W_s.shape[0] if self.built else None
        encoded = _tensor("encoded", encoded, None, None, D)
        batch, steps_in = encoded.shape[:2]
        if mask is not None:
            mask = _tensor("mask", mask, batch, steps_in)
        if isinstance(initial_state, (list, tuple)):  # as keras.layers.GRU takes it
            if len(initial_state) != 1:
                raise ValueError(
                    "initial_state must be one tensor (batch, u), or a list of one, got "
                    f"{len(initial_state)}: of the states [h, c] of an LSTM, give h"
                )
            (initial_state,) = initial_state
        if initial_state is not None:
            initial_state = _tensor("initial_state", initial_state, batch, self.units)
        return encoded, mask, initial_state

    def _ids_or_vectors(self, name, y, *shape):
        """y as a tensor: ids, integers of this shape, or vectors, floats of (*shape, o)."""
        y, o, rank = _tensor(name, y), self.output_dim, len(shape)
        if len(y.shape) != (rank if _are_ids(y) else rank + 1) or (_are_ids(y) and o == 1):
            right = f"integers of rank {rank} (ids) or floats of rank {rank + 1} (vectors)"
            if o == 1:
                right = f"floats of rank {rank + 1}, the last axis 1, where output_dim is 1"
            dtype = keras.backend.standardize_dtype(y.dtype)
            raise ValueError(f"{name} must be {right}, got {dtype} of shape {tuple(y.shape)}")
        return _tensor(name, y, *shape) if _are_ids(y) else _tensor(name, y, *shape, o)

    def _refuse_unbuilt(self):
        if not self.built:
            raise ValueError(
                "The layer has no weights yet: call start, which makes them and what step is given"
            )


class _LoopCell:
    """What `keras.layers.RNN` asks of a cell, for the step function of one call."""

    def __init__(self, step, states):
        self.step, self.compute_dtype = step, states[0].dtype
        self.state_size = [state.shape[-1] for state in states]

    def call(self, x, states):
        outputs, states = self.step(x, states)
        return ops.concatenate(outputs, axis=-1), states

    __call__ = call


def _tensor(name, x, *shape):
    """x as a tensor, a keras.Input as it is. Raises ValueError, if it has not this shape."""
    if isinstance(x, (list, tuple)) and any(isinstance(t, keras.KerasTensor) for t in x):
        raise ValueError(f"{name} must be one tensor, got a list of {len(x)}")
    x = x if isinstance(x, keras.KerasTensor) else ops.convert_to_tensor(x)
    if shape:
        _check_shape(name, x.shape, *shape)
    return x


def _check_shape(name, got, *shape):
    got = tuple(got)
    if len(got) != len(shape) or any(a != b and None not in (a, b) for a, b in zip(got, shape)):
        message = f"{name} must have the shape {shape}, got {got}"
        if name == "encoded" and len(got) == 2:
            message += ": the recurrent layer before it needs return_sequences=True"
        raise ValueError(message)
    if 0 in got[1:]:
        raise ValueError(f"{name} must have at least 1 time step, got the shape {got}")


def _refuse_symbolic(*arguments):
    if any(isinstance(x, keras.KerasTensor) for x in arguments):
        raise ValueError(
            "start, step and feed must be given tensors, not a keras.Input: write a keras.Model "
            "with a call that uses them, which then has the layer's weights"
        )


def _refuse_unknown_length(length):
    """Exports from PyTorch trace it as a tensor that is 1, and the loop would stay so short."""
    if keras.backend.backend() == "torch" and not isinstance(length, int) and length == 1:
        raise ValueError(
            "output_length must be given in an export from PyTorch, whose loop keeps its length; "
            "it takes no targets of unknown length"
        )


def _positive_integer(name, value, optional=False):
    if optional and value is None:
        return None
    message = f"{name} must be a positive integer, got {value!r}"
    is_integer = isinstance(value, numbers.Integral) and not isinstance(value, bool)
    if hasattr(value, "dtype"):  # NumPy's, or a tensor
        is_integer = "int" in str(value.dtype) and len(value.shape) == 0
    try:
        integer = operator.index(value) if is_integer else 0
    except TypeError:
        message += ", whose value is not known here: give int(...), or give it to the layer"
        integer = 0
    if integer < 1:
        raise ValueError(message)
    return integer


def _are_ids(y):
    return keras.backend.is_int_dtype(y.dtype)


def _of_each_row(function, x):
    """ops.min or ops.max of each row, (B, 1), without a gradient."""
    if x.shape[0] == 0:  # no samples: these refuse it
        return x[:, :1]
    return function(ops.stop_gradient(x), axis=-1, keepdims=True)


def _argmax(y):
    """The first of the largest, without ops.argmax of floats, which ONNX and LiteRT lack."""
    largest = ops.equal(y, _of_each_row(ops.max, y))
    return ops.argmax(ops.cast(largest, "int32"), axis=-1)
