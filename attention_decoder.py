"""The attention layer: the article's section "Custom Keras Attention Layer".

`AttentionDecoder` is one Keras layer after the decoder of Bahdanau, Cho & Bengio, "Neural Machine
Translation by Jointly Learning to Align and Translate" (arXiv:1409.0473), appendix A. Copy this
file into your project: it needs Keras 3 alone and runs on TensorFlow, JAX and PyTorch.

    from attention_decoder import AttentionDecoder
"""

import keras
from keras import ops


@keras.saving.register_keras_serializable(package="attention_decoder")
class AttentionDecoder(keras.layers.Layer):
    """Decodes a sequence while attending to every step of the encoded sequence.

    With h_1 … h_Tin the encoder's outputs, s_t the decoder's state and y_t its output at step t,
    both as row vectors (∘ multiplies element by element):

    ```
    s_0   = tanh(h_1 W_s)                        y_0 = 0
    k_j   = h_j U_a + b_a                        once per sequence
    e_tj  = tanh(s_{t-1} W_a + k_j) · V_a        how well input step j fits output step t
    α_t   = softmax over j of e_t                the attention weights, or scores
    c_t   = Σ_j α_tj h_j                         the context
    r_t   = σ(y_{t-1} W_r + s_{t-1} U_r + c_t C_r + b_r)
    z_t   = σ(y_{t-1} W_z + s_{t-1} U_z + c_t C_z + b_z)
    p_t   = activation(y_{t-1} W_p + (r_t ∘ s_{t-1}) U_p + c_t C_p + b_p)
    y_t   = output_activation(y_{t-1} W_o + s_{t-1} U_o + c_t C_o + b_o)
    s_t   = (1 - z_t) ∘ s_{t-1} + z_t ∘ p_t
    ```

    y_t is made from s_{t-1}, the state before the update, as in the paper's appendix A.2.2; where
    the paper has an embedding and a maxout layer, targets are used as they are and one dense layer
    makes the output.

    | paper's letter, in `get_weights()` order | shape                  | arguments     |
    |------------------------------------------|------------------------|---------------|
    | V_a, W_a, U_a (the score)                | (u,), (u, u), (D, u)   | `kernel_…`    |
    | b_a                                      | (u,)                   | `bias_…`      |
    | C_r, U_r, W_r (the reset gate)           | (D, u), (u, u), (o, u) | `recurrent_…` |
    | b_r                                      | (u,)                   | `bias_…`      |
    | C_z, U_z, W_z (the update gate)          | (D, u), (u, u), (o, u) | `recurrent_…` |
    | b_z                                      | (u,)                   | `bias_…`      |
    | C_p, U_p, W_p (the proposed state)       | (D, u), (u, u), (o, u) | `recurrent_…` |
    | b_p                                      | (u,)                   | `bias_…`      |
    | C_o, U_o, W_o (the output)               | (D, o), (u, o), (o, o) | `recurrent_…` |
    | b_o                                      | (o,)                   | `bias_…`      |
    | W_s (the first state)                    | (D, u)                 | `recurrent_…` |

    D is the encoder's width, u = `units` and o = `output_dim`.

    How it differs from the article's original layer (Keras 2.0.8): the weights and their order are
    the same, and so are the numbers. But scores of any size are safe, `activation` is used,
    `recurrent_…` is not taken from `kernel_…`, the config is complete, masks are honoured and end
    here, the output may have a length of its own, unknown lengths work, targets can be fed, and
    the attention weights come beside the outputs and without a stray last axis.

    Args:
        units: Positive integer, width u of the state and of the attention.
        output_dim: Positive integer, width o of an output step.
        activation: Activation of p_t, the proposed state. Default: tanh.
        return_probabilities: Whether to return the attention weights (batch, T_out, T_in) in place
            of the outputs, as in the article. Default: False.
        output_length: Positive integer T_out, or None (the default) for as many output steps as
            input steps.
        output_activation: Activation of y_t. Default: softmax.
        unroll: Whether to unroll the loop over the output steps: faster for a few steps, but the
            time to compile grows with T_out, and the memory for training with T_out · T_in · u.
            Default: False, a symbolic loop, which computes tanh(s_{t-1} W_a + k_j) again for the
            gradient (with Keras 3.9 or later); on TensorFlow this rules out second derivatives.
        kernel_initializer, kernel_regularizer, kernel_constraint: For V_a, W_a and U_a.
            Default: glorot_uniform, None, None.
        recurrent_initializer, recurrent_regularizer, recurrent_constraint: For C, U, W and W_s.
            Default: orthogonal, None, None.
        bias_initializer, bias_regularizer, bias_constraint: For the biases b.
            Default: zeros, None, None. An initializer object with a seed gives all weights of
            one shape the same numbers.
        **kwargs: `name`, `dtype`, `trainable`: see `keras.layers.Layer`.

    Call arguments:
        encoded: The encoder's outputs, (batch, T_in, D). Batch and T_in may be unknown.
        targets: (batch, T_out, o). If given, each step is fed the target of the step before in
            place of the layer's own y_{t-1} (teacher forcing); the first is fed zeros either way.
        mask: Boolean (batch, T_in), False at padding. Padded steps get weight 0, whatever stands in
            them, and s_0 is made from the first step that is not padded. By default the mask
            that comes with `encoded`. The outputs carry no mask.
        return_attention_scores: Whether to return `(outputs, scores)`. Default: False. Where one
            layer is called several times in a functional model, Keras wants the same in each call.
        encoded_mask: Filled in by Keras with the encoder's own mask when `targets` are given too.

    Returns:
        The outputs (batch, T_out, o), the scores α (batch, T_out, T_in), or both, in the layer's
        compute dtype.

    Raises:
        ValueError: When made, if `units`, `output_dim` or `output_length` is not a positive
            integer. When built or called, if `encoded` is not of rank 3, or its width is unknown
            or another than the layer was built for, if `targets` or `mask` do not fit, or if
            `unroll=True` and the number of output steps is unknown.

    Example: reverse sequences of 3 to 8 symbols from 1 … 10, padded with 0.

    >>> import keras, numpy as np
    >>> from attention_decoder import AttentionDecoder
    >>> keras.utils.set_random_seed(0)
    >>> lengths = np.random.randint(3, 9, size=(8000, 1))
    >>> x = np.where(np.arange(8) < lengths, np.random.randint(1, 11, size=(8000, 8)), 0)
    >>> reversed_x = np.take_along_axis(x, (lengths - 1 - np.arange(8)) % 8, axis=1)
    >>> y = keras.utils.to_categorical(reversed_x, 11)
    >>> symbols, targets = keras.Input((8,), dtype="int32"), keras.Input((8, 11))
    >>> embedded = keras.layers.Embedding(11, 32, mask_zero=True)(symbols)
    >>> encoded = keras.layers.LSTM(64, return_sequences=True)(embedded)
    >>> decoder = AttentionDecoder(64, 11, output_length=8)
    >>> teacher_forced = keras.Model([symbols, targets], decoder(encoded, targets))
    >>> free_running = keras.Model(symbols, decoder(encoded))  # the same weights
    >>> teacher_forced.compile(keras.optimizers.Adam(0.005), "categorical_crossentropy")
    >>> history = teacher_forced.fit([x[1000:], y[1000:]], y[1000:], epochs=3, verbose=0)
    >>> predicted = free_running.predict(x[:1000], verbose=0).argmax(axis=-1)
    >>> bool(np.mean(np.all(predicted == reversed_x[:1000], axis=1)) >= 0.95)
    True
    """

    def __init__(
        self,
        units,
        output_dim,
        activation="tanh",
        return_probabilities=False,
        *,
        output_length=None,
        output_activation="softmax",
        feedback=None,
        embedding_dim=None,
        unroll=False,
        kernel_initializer="glorot_uniform",
        recurrent_initializer="orthogonal",
        bias_initializer="zeros",
        kernel_regularizer=None,
        recurrent_regularizer=None,
        bias_regularizer=None,
        kernel_constraint=None,
        recurrent_constraint=None,
        bias_constraint=None,
        **kwargs,
    ):
        super().__init__(**kwargs)
        self.units = _positive_integer("units", units)
        self.output_dim = _positive_integer("output_dim", output_dim)
        self.activation = keras.activations.get(activation)
        self.return_probabilities = return_probabilities
        self.output_length = _positive_integer("output_length", output_length, optional=True)
        self.output_activation = keras.activations.get(output_activation)
        self.feedback = _feedback(feedback)
        self.embedding_dim = _positive_integer("embedding_dim", embedding_dim, optional=True)
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
        self.supports_masking = True

    def build(self, encoded_shape, targets_shape=None):
        self._check_encoded(encoded_shape)
        D, u, o = encoded_shape[-1], self.units, self.output_dim
        m = self.embedding_dim or o

        def weight(name, shape, kind):
            initializer = getattr(self, f"{kind}_initializer")
            if isinstance(initializer, keras.initializers.Initializer):
                initializer = initializer.clone()  # one object would draw the same numbers again
            try:
                return self.add_weight(
                    name=name,
                    shape=shape,
                    initializer=initializer,
                    regularizer=getattr(self, f"{kind}_regularizer"),
                    constraint=getattr(self, f"{kind}_constraint"),
                    autocast=name != "V_a",  # the scores stay in float32 under mixed precision
                )
            except ValueError as error:
                raise ValueError(
                    f"{kind}_initializer must be able to make {name} of shape {shape}, as "
                    f"'glorot_uniform' and 'zeros' are, got {initializer}: {error}"
                ) from error

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
        if self.embedding_dim is not None:
            self.E = weight("E", (o, m), "kernel")

    def call(
        self,
        encoded,
        targets=None,
        mask=None,
        return_attention_scores=False,
        encoded_mask=None,
        output_length=None,
    ):
        mask = encoded_mask if mask is None else mask
        steps_out = self._steps_out(encoded, targets, mask, output_length)
        y, s, memory = self.start(encoded, mask)
        if steps_out is None and targets is None:
            steps_out = ops.shape(encoded)[1]
        x = (
            self._cast(ops.zeros_like(y))
            if self.embedding_dim is None
            else ops.zeros((ops.shape(y)[0], self.embedding_dim), dtype=y.dtype)
        )
        weights = self._joined_weights()
        with_scores = return_attention_scores or self.return_probabilities

        if targets is None:
            fed = ops.zeros(
                (ops.shape(y)[0], steps_out, 1), dtype=y.dtype
            )  # for their number alone
        else:
            with keras.name_scope("targets_must_fit_encoded_and_output_length"):
                fed = ops.concatenate([x[:, None], self._embed(targets)], axis=1)[:, :-1]
                if steps_out is not None and fed.shape[1] is None:
                    fed = ops.reshape(fed, (ops.shape(fed)[0], steps_out, fed.shape[2]))

        def step(fed, states):
            x, s = states
            y, s, alpha = self._step(x if targets is None else fed, s, memory, weights)
            x = self._feed(y) if targets is None else x
            return ops.concatenate([y, alpha], axis=-1) if with_scores else y, [x, s]

        if self.unroll or keras.backend.backend() == "torch":
            outputs, states = [], [x, s]
            for t in range(steps_out):
                output, states = step(fed[:, t], states)
                outputs.append(output)
            outputs = ops.stack(outputs, axis=1)
        else:
            cell = _Cell(step, [x.shape[-1], self.units], self.compute_dtype)
            loop = keras.layers.RNN(
                cell, return_sequences=True, dtype=self.compute_dtype, name="loop"
            )
            outputs = loop(fed, initial_state=[x, s])  # (B, Tout, o) or (B, Tout, o + Tin)
            del (
                cell.call
            )  # a cycle of references would keep the batch alive until garbage collection
        if not with_scores:
            return outputs
        outputs, scores = outputs[..., : self.output_dim], outputs[..., self.output_dim :]
        if self.return_probabilities:
            outputs = scores
        return (outputs, scores) if return_attention_scores else outputs

    def start(self, encoded, mask=None):
        self._steps_out(encoded, None, mask)
        if not self.built:
            self.build(encoded.shape)
        h = ops.cast(encoded, self.compute_dtype)  # (B, Tin, D)
        h_1 = h[:, 0]  # (B, D)
        if mask is not None:
            mask = ops.cast(mask, "bool")  # (B, Tin)
            if None in (*h.shape, *mask.shape):
                with keras.name_scope("mask_must_have_the_steps_of_encoded"):
                    mask = ops.expand_dims(ops.cast(mask, h.dtype), 2)
                    mask = ops.concatenate([mask, ops.zeros_like(h[:, :, :1])], axis=2)[:, :, 0]
                    mask = ops.cast(mask, "bool")
            h = ops.where(mask[:, :, None], h, 0)  # clears even a NaN
            first = ops.cumsum(ops.cast(mask, "int32"), axis=1) == 1  # and padding after it: 0
            h_1 = ops.sum(ops.where(first[:, :, None], h, 0), axis=1)
        # s_0 = tanh(h_1 W_s)   y_0 = 0
        s_0 = ops.tanh(ops.matmul(h_1, self._cast(self.W_s)))  # (B, u)
        y_0 = ops.zeros((ops.shape(h)[0], self.output_dim), dtype=h.dtype)  # (B, o)
        # k_j = h_j U_a + b_a
        k = ops.matmul(h, self._cast(self.U_a)) + self._cast(self.b_a)  # (B, Tin, u)
        return y_0, s_0, (h, k) if mask is None else (h, k, mask)

    def step(self, y, s, memory):
        if _are_ids("y", y, 1) or self.feedback is None:
            x = self._embed(y)
        else:
            y = ops.cast(y, self.compute_dtype)
            is_y_0 = ops.all(ops.equal(y, 0), axis=-1, keepdims=True)
            x = ops.where(is_y_0, 0, self._feed(y))
        return self._step(x, ops.cast(s, self.compute_dtype), memory, self._joined_weights())

    def _feed(self, y):
        if self.feedback == "argmax":
            y = ops.argmax(y, axis=-1)
        elif self.feedback is not None:
            y = self.feedback(y)
        return self._embed(y)

    def _embed(self, y):
        ids = keras.backend.is_int_dtype(y.dtype)
        if self.embedding_dim is None:
            return (
                ops.one_hot(y, self.output_dim, dtype=self.compute_dtype) if ids else self._cast(y)
            )
        E = self._cast(self.E)
        return ops.take(E, y, axis=0) if ids else ops.matmul(self._cast(y), E)

    def _joined_weights(self):
        """Matrices that multiply the same vector, joined: one product a step."""

        def joined(*weights):
            return self._cast(ops.concatenate(weights, axis=-1))

        return (
            joined(self.W_a, self.U_r, self.U_z, self.U_o),  # (u, 3u + o)
            joined(self.W_r, self.W_z, self.W_p, self.W_o),  # (m, 3u + o)
            joined(self.C_r, self.C_z, self.C_p, self.C_o),  # (D, 3u + o)
            joined(self.b_r, self.b_z, self.b_p, self.b_o),  # (3u + o,)
            self._cast(self.U_p),
        )

    def _cast(self, tensor):
        return ops.cast(tensor, self.compute_dtype)

    def _split(self, joined):
        u = self.units
        return (
            joined[..., :u],
            joined[..., u : 2 * u],
            joined[..., 2 * u : 3 * u],
            joined[..., 3 * u :],
        )

    def _step(self, x, s, memory, weights):
        """One step of the equations: from x_t and s_{t-1} to y_t, s_t and α_t."""
        h, k, *mask = memory
        U, W, C, b, U_p = weights
        sW_a, sU_r, sU_z, sU_o = self._split(ops.matmul(s, U))
        # e_tj = tanh(s_{t-1} W_a + k_j) · V_a
        scores = _scores if self.unroll else _remat(_scores)
        e = scores(sW_a, k, ops.expand_dims(self.V_a, 1))  # (B, Tin)
        # α_t = softmax over j of e_t
        if mask:
            e = ops.where(mask[0], e, -3.4e38)  # about the least float32
        alpha = ops.softmax(e, axis=-1) if e.shape[-1] != 1 else ops.exp(e - e)
        if mask:
            alpha = ops.where(mask[0], alpha, 0)  # a sample that is all padding attends to nothing
        alpha = ops.cast(alpha, h.dtype)
        # c_t = Σ_j α_tj h_j
        c = ops.squeeze(ops.matmul(ops.expand_dims(alpha, 1), h), 1)  # (B, D)
        # i_g = x_t W_g + c_t C_g + b_g for each g of r, z, p, o
        i_r, i_z, i_p, i_o = self._split(ops.matmul(x, W) + ops.matmul(c, C) + b)
        # r_t = σ(i_r + s_{t-1} U_r)
        r = ops.sigmoid(i_r + sU_r)  # (B, u)
        # z_t = σ(i_z + s_{t-1} U_z)
        z = ops.sigmoid(i_z + sU_z)  # (B, u)
        # p_t = activation(i_p + (r_t ∘ s_{t-1}) U_p)
        p = self.activation(i_p + ops.matmul(r * s, U_p))  # (B, u)
        # y_t = output_activation(i_o + s_{t-1} U_o)
        y = self.output_activation(i_o + sU_o)  # (B, o)
        # s_t = (1 - z_t) ∘ s_{t-1} + z_t ∘ p_t
        return y, (1 - z) * s + z * p, alpha

    def compute_mask(self, inputs, previous_mask):
        return None  # the input's mask says nothing about the output steps

    def compute_output_shape(self, encoded_shape, targets_shape=None):
        encoded, targets = (
            shape and keras.KerasTensor(shape, dtype="int32" if len(shape) == 2 else "float32")
            for shape in (encoded_shape, targets_shape)
        )
        return self.compute_output_spec(encoded, targets).shape

    def compute_output_spec(
        self,
        encoded,
        targets=None,
        mask=None,
        return_attention_scores=False,
        encoded_mask=None,
        output_length=None,
    ):
        mask = encoded_mask if mask is None else mask
        steps_out = self._steps_out(encoded, targets, mask, output_length)
        B, T_in = encoded.shape[:2]
        outputs = keras.KerasTensor((B, steps_out, self.output_dim), dtype=self.compute_dtype)
        scores = keras.KerasTensor((B, steps_out, T_in), dtype=self.compute_dtype)
        if self.return_probabilities:
            outputs = scores
        return (outputs, scores) if return_attention_scores else outputs

    def _check_encoded(self, shape):
        if len(shape) and isinstance(shape[0], (list, tuple)):
            raise ValueError(
                "encoded must be one tensor; targets are an argument of their own: "
                "layer(encoded, targets)"
            )
        if len(shape) != 3 or shape[-1] is None:
            raise ValueError(
                "encoded must have the shape (batch, time steps, features) with a known number of "
                f"features, got {tuple(shape)}"
            )
        if self.built and shape[-1] != self.W_s.shape[0]:
            raise ValueError(
                f"encoded must have the {self.W_s.shape[0]} features that the layer was built for, "
                f"got {tuple(shape)}"
            )

    def _steps_out(self, encoded, targets=None, mask=None, output_length=None):
        """T_out, or None where it is not known; raises ValueError for what does not fit."""
        if isinstance(encoded, (list, tuple)):
            raise ValueError(
                "encoded must be one tensor; targets are an argument of their own: "
                "layer(encoded, targets)"
            )
        for name, value in (("targets", targets), ("mask", mask)):
            if isinstance(value, (list, tuple)):
                raise ValueError(
                    f"{name} must be an array or a tensor, got a {type(value).__name__}: "
                    f"numpy.array({name}) makes it one"
                )
        self._check_encoded(encoded.shape)
        B, T_in, _ = encoded.shape
        steps_out = (
            _positive_integer("output_length", output_length, optional=True) or self.output_length
        )
        if targets is not None:
            right = (
                (B, steps_out)
                if _are_ids("targets", targets, 2)
                else (B, steps_out, self.output_dim)
            )
            if not _fits(targets.shape, right):
                raise ValueError(
                    f"targets must have the shape {right}, got {tuple(targets.shape)}, output_length={steps_out}"
                )
            steps_out = steps_out or targets.shape[1]
        elif steps_out is None:
            steps_out = T_in
        if mask is not None and not _fits(mask.shape, (B, T_in)):
            raise ValueError(f"mask must have the shape {(B, T_in)}, got {tuple(mask.shape)}")
        if self.unroll and steps_out is None:
            raise ValueError(
                "unroll=True needs a known number of output steps: give output_length, or encoded "
                f"with a known number of time steps, got {tuple(encoded.shape)}"
            )
        return steps_out

    def get_config(self):
        config = super().get_config()
        for name in (
            "units",
            "output_dim",
            "return_probabilities",
            "output_length",
            "embedding_dim",
            "unroll",
        ):
            config[name] = getattr(self, name)
        for name in ("activation", "output_activation", "feedback"):
            value = getattr(self, name)
            keep = value is None or isinstance(value, str)
            config[name] = value if keep else keras.activations.serialize(value)
        for kind in ("kernel", "recurrent", "bias"):
            for part in ("initializer", "regularizer", "constraint"):
                serialize = getattr(keras, f"{part}s").serialize
                config[f"{kind}_{part}"] = serialize(getattr(self, f"{kind}_{part}"))
        return config


class _Cell:
    """What `keras.layers.RNN` asks of a cell: a step function, its state's widths and its dtype."""

    def __init__(self, step, state_size, compute_dtype):
        self.call = step
        self.state_size = state_size
        self.compute_dtype = compute_dtype

    def __call__(self, inputs, states):
        return self.call(inputs, states)


# Computes a function again for its gradient instead of keeping what is in between: with the scores,
# that would be Tout · Tin · u numbers.
_remat = getattr(keras, "remat", lambda function: function)  # Keras 3.9


def _scores(s_a, k, V_a):
    """e_t = tanh(s_{t-1} W_a + k_j) · V_a, V_a as (u, 1), in no less than float32: no overflow."""
    dtype = keras.backend.standardize_dtype(k.dtype)
    dtype = "float32" if dtype in ("float16", "bfloat16") else dtype
    tanh = ops.cast(ops.tanh(ops.expand_dims(s_a, 1) + k), dtype)  # (B, Tin, u)
    return ops.squeeze(ops.matmul(tanh, ops.cast(V_a, dtype)), 2)  # (B, Tin)


def _are_ids(name, y, rank):
    """Whether y are ids, integers of this rank, and not vectors."""
    ids = keras.backend.is_int_dtype(y.dtype)
    if len(y.shape) != (rank if ids else rank + 1):
        raise ValueError(
            f"{name} must be ids, integers of rank {rank}, or vectors, floats of rank {rank + 1}, "
            f"got {keras.backend.standardize_dtype(y.dtype)} of shape {tuple(y.shape)}"
        )
    return ids


def _fits(shape, right):
    """Whether two shapes are the same as far as they are known."""
    return len(shape) == len(right) and all(
        a == b or a is None or b is None for a, b in zip(shape, right)
    )


def _feedback(value):
    try:
        return value if value in (None, "argmax") else keras.activations.get(value)
    except (TypeError, ValueError):
        raise ValueError(
            f"feedback must be None, 'argmax' or an activation's name or function, got {value!r}"
        ) from None


def _positive_integer(name, value, optional=False):
    try:
        if optional and value is None:
            return None
        if not isinstance(value, bool) and value.__index__() >= 1:
            return value.__index__()
    except (AttributeError, TypeError):
        pass
    raise ValueError(f"{name} must be a positive integer, got {value!r}")
