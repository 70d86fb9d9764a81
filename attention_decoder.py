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
        if output_length is not None:
            output_length = _positive_integer("output_length", output_length)
        self.output_length = output_length
        self.output_activation = keras.activations.get(output_activation)
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
        self._steps_out(encoded_shape, targets_shape)
        D, u, o = encoded_shape[-1], self.units, self.output_dim

        def weight(name, shape, kind):
            initializer = getattr(self, f"{kind}_initializer")
            if isinstance(initializer, keras.initializers.Initializer):
                initializer = initializer.clone()  # one object would draw the same numbers again
            return self.add_weight(
                name=name,
                shape=shape,
                initializer=initializer,
                regularizer=getattr(self, f"{kind}_regularizer"),
                constraint=getattr(self, f"{kind}_constraint"),
                autocast=name != "V_a",  # the scores stay in float32 under mixed precision
            )

        self.V_a = weight("V_a", (u,), "kernel")
        self.W_a = weight("W_a", (u, u), "kernel")
        self.U_a = weight("U_a", (D, u), "kernel")
        self.b_a = weight("b_a", (u,), "bias")
        self.C_r = weight("C_r", (D, u), "recurrent")
        self.U_r = weight("U_r", (u, u), "recurrent")
        self.W_r = weight("W_r", (o, u), "recurrent")
        self.b_r = weight("b_r", (u,), "bias")
        self.C_z = weight("C_z", (D, u), "recurrent")
        self.U_z = weight("U_z", (u, u), "recurrent")
        self.W_z = weight("W_z", (o, u), "recurrent")
        self.b_z = weight("b_z", (u,), "bias")
        self.C_p = weight("C_p", (D, u), "recurrent")
        self.U_p = weight("U_p", (u, u), "recurrent")
        self.W_p = weight("W_p", (o, u), "recurrent")
        self.b_p = weight("b_p", (u,), "bias")
        self.C_o = weight("C_o", (D, o), "recurrent")
        self.U_o = weight("U_o", (u, o), "recurrent")
        self.W_o = weight("W_o", (o, o), "recurrent")
        self.b_o = weight("b_o", (o,), "bias")
        self.W_s = weight("W_s", (D, u), "recurrent")

    def call(
        self,
        encoded,
        targets=None,
        mask=None,
        return_attention_scores=False,
        encoded_mask=None,
    ):
        mask = encoded_mask if mask is None else mask
        steps_out = self._steps_out(encoded.shape, _shape(targets), _shape(mask))
        h = ops.cast(encoded, self.compute_dtype)  # (B, Tin, D)
        h_1 = h[:, 0]  # (B, D)
        if mask is not None:
            mask = ops.cast(mask, "bool")  # (B, Tin)
            h = ops.where(mask[:, :, None], h, 0)  # clears even a NaN
            first = ops.cumsum(ops.cast(mask, "int32"), axis=1) == 1  # and padding after it: 0
            h_1 = ops.sum(ops.where(first[:, :, None], h, 0), axis=1)

        # s_0 = tanh(h_1 W_s)   y_0 = 0
        s_0 = ops.tanh(ops.matmul(h_1, self.W_s))  # (B, u)
        y_0 = ops.zeros((ops.shape(h)[0], self.output_dim), dtype=h.dtype)  # (B, o)
        # k_j = h_j U_a + b_a
        k = ops.matmul(h, self.U_a) + self.b_a  # (B, Tin, u)

        # Matrices that multiply the same vector are joined, once per sequence: one product a step.
        U = ops.concatenate([self.W_a, self.U_r, self.U_z, self.U_o], axis=1)  # (u, 3u + o)
        W = ops.concatenate([self.W_r, self.W_z, self.W_p, self.W_o], axis=1)  # (o, 3u + o)
        C = ops.concatenate([self.C_r, self.C_z, self.C_p, self.C_o], axis=1)  # (D, 3u + o)
        b = ops.concatenate([self.b_r, self.b_z, self.b_p, self.b_o])  # (3u + o,)
        with_scores = return_attention_scores or self.return_probabilities

        def step(target, states):
            y, s = states
            y, s, alpha = self.step(y if targets is None else target, s, h, k, mask, U, W, C, b)
            return ops.concatenate([y, alpha], axis=-1) if with_scores else y, [y, s]

        # What the steps are fed: the target of the step before, or nothing but their number.
        steps_out = ops.shape(h)[1] if steps_out is None else steps_out
        if targets is None:
            fed = ops.zeros((ops.shape(h)[0], steps_out, 1), dtype=h.dtype)
        else:
            before = ops.cast(targets[:, : steps_out - 1], h.dtype)
            before = ops.reshape(before, (ops.shape(h)[0], steps_out - 1, self.output_dim))
            fed = ops.concatenate([y_0[:, None], before], axis=1)
        cell = _Cell(step, [self.output_dim, self.units], self.compute_dtype)
        loop = keras.layers.RNN(
            cell, return_sequences=True, unroll=self.unroll, dtype=self.compute_dtype, name="loop"
        )
        outputs = loop(fed, initial_state=[y_0, s_0])  # (B, Tout, o) or (B, Tout, o + Tin)
        del cell.call  # a cycle of references would keep the batch alive until garbage collection
        if not with_scores:
            return outputs
        outputs, scores = outputs[..., : self.output_dim], outputs[..., self.output_dim :]
        if self.return_probabilities:
            outputs = scores
        return (outputs, scores) if return_attention_scores else outputs

    def step(self, y, s, h, k, mask, U, W, C, b):
        """One step of the equations: from y_{t-1} and s_{t-1} to y_t, s_t and α_t."""
        u = self.units
        s_a, s_r, s_z, s_o = ops.split(ops.matmul(s, U), [u, 2 * u, 3 * u], axis=-1)
        # e_tj = tanh(s_{t-1} W_a + k_j) · V_a
        scores = _scores if self.unroll else _remat(_scores)
        e = scores(s_a, k, ops.expand_dims(self.V_a, 1))  # (B, Tin)
        # α_t = softmax over j of e_t
        if mask is not None:
            e = ops.where(mask, e, -3.4e38)  # about the least float32
        alpha = ops.softmax(e, axis=-1)
        if mask is not None:
            alpha = ops.where(mask, alpha, 0)  # a sample that is all padding attends to nothing
        alpha = ops.cast(alpha, h.dtype)
        # c_t = Σ_j α_tj h_j
        c = ops.squeeze(ops.matmul(ops.expand_dims(alpha, 1), h), 1)  # (B, D)
        x = ops.matmul(y, W) + ops.matmul(c, C) + b
        x_r, x_z, x_p, x_o = ops.split(x, [u, 2 * u, 3 * u], axis=-1)
        # r_t = σ(y_{t-1} W_r + s_{t-1} U_r + c_t C_r + b_r)
        r = ops.sigmoid(x_r + s_r)  # (B, u)
        # z_t = σ(y_{t-1} W_z + s_{t-1} U_z + c_t C_z + b_z)
        z = ops.sigmoid(x_z + s_z)  # (B, u)
        # p_t = activation(y_{t-1} W_p + (r_t ∘ s_{t-1}) U_p + c_t C_p + b_p)
        p = self.activation(x_p + ops.matmul(r * s, self.U_p))  # (B, u)
        # y_t = output_activation(y_{t-1} W_o + s_{t-1} U_o + c_t C_o + b_o)
        y = self.output_activation(x_o + s_o)  # (B, o)
        # s_t = (1 - z_t) ∘ s_{t-1} + z_t ∘ p_t
        return y, (1 - z) * s + z * p, alpha

    def compute_mask(self, inputs, previous_mask):
        return None  # the input's mask says nothing about the output steps

    def compute_output_shape(self, encoded_shape, targets_shape=None, mask_shape=None):
        steps_out = self._steps_out(encoded_shape, targets_shape, mask_shape)
        width = encoded_shape[1] if self.return_probabilities else self.output_dim
        return (encoded_shape[0], steps_out, width)

    def compute_output_spec(
        self,
        encoded,
        targets=None,
        mask=None,
        return_attention_scores=False,
        encoded_mask=None,
    ):
        mask = encoded_mask if mask is None else mask
        shape = self.compute_output_shape(encoded.shape, _shape(targets), _shape(mask))
        outputs = keras.KerasTensor(shape, dtype=self.compute_dtype)
        if not return_attention_scores:
            return outputs
        return outputs, keras.KerasTensor((*shape[:2], encoded.shape[1]), dtype=self.compute_dtype)

    def _steps_out(self, encoded_shape, targets_shape=None, mask_shape=None):
        """T_out, or None where it is not known; raises ValueError for shapes that do not fit."""
        if len(encoded_shape) != 3 or encoded_shape[-1] is None:
            raise ValueError(
                "encoded must have the shape (batch, time steps, features) with a known number of "
                f"features, got {tuple(encoded_shape)}"
            )
        if self.built and encoded_shape[-1] != self.W_s.shape[0]:
            raise ValueError(
                f"encoded must have the {self.W_s.shape[0]} features that the layer was built for, "
                f"got {tuple(encoded_shape)}"
            )
        steps_out = self.output_length or encoded_shape[1]
        for name, shape, right in (
            ("targets", targets_shape, (encoded_shape[0], steps_out, self.output_dim)),
            ("mask", mask_shape, tuple(encoded_shape[:2])),
        ):
            if shape is not None and not _fits(shape, right):
                raise ValueError(f"{name} must have the shape {right}, got {tuple(shape)}")
        if self.unroll and steps_out is None:
            raise ValueError(
                "unroll=True needs a known number of output steps: give output_length, or encoded "
                f"with a known number of time steps, got {tuple(encoded_shape)}"
            )
        return steps_out

    def get_config(self):
        config = super().get_config()
        for name in ("units", "output_dim", "return_probabilities", "output_length", "unroll"):
            config[name] = getattr(self, name)
        for name in ("activation", "output_activation"):
            config[name] = keras.activations.serialize(getattr(self, name))
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


def _shape(tensor):
    return None if tensor is None else tensor.shape


def _fits(shape, right):
    """Whether two shapes are the same as far as they are known."""
    return len(shape) == len(right) and all(
        a == b or a is None or b is None for a, b in zip(shape, right, strict=True)
    )


def _positive_integer(name, value):
    try:
        if not isinstance(value, bool) and value.__index__() >= 1:
            return value.__index__()
    except (AttributeError, TypeError):
        pass
    raise ValueError(f"{name} must be a positive integer, got {value!r}")
