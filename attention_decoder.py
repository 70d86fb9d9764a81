"""Custom Keras Attention Layer: the article's section 4 (自定义Keras注意层).

`AttentionDecoder` is one Keras layer after the decoder of Bahdanau, Cho & Bengio, "Neural Machine
Translation by Jointly Learning to Align and Translate" (arXiv:1409.0473), appendix A. Copy this
file into your project: it needs Keras 3.2 or later alone, runs on TensorFlow, JAX and PyTorch, and
on Python 3.9 or later.
"""

# Part of "Attention, read along". Copyright (c) 2026 the authors of that repository. MIT License.

import keras
from keras import ops


@keras.saving.register_keras_serializable(package="attention_decoder")
class AttentionDecoder(keras.layers.Layer):
    """Decodes a sequence while attending to every step of the encoded sequence.

    With h_1 … h_Tin the encoder's outputs, s_t the decoder's state, x_t what a step is fed and y_t
    its output, all as row vectors (∘ multiplies element by element):

    ```
    s_0   = tanh(h_1 W_s)                     y_0 = 0
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
    dense layer stands for the paper's maxout layer. `start` and `step` decode one step at a time,
    for beam search.

    Args:
        units: Positive integer, width u of the state and of the attention.
        output_dim: Positive integer, width o of an output step.
        activation: Activation of p_t, the proposed state. Default: tanh.
        return_probabilities: Whether to return the attention weights (batch, T_out, T_in) in place
            of the outputs, as in the article. Default: False.
        output_length: Positive integer T_out. Default: None, the length of the targets or, without
            targets, of the input.
        output_activation: Activation of y_t. Default: softmax. For logits, as a loss with
            `from_logits=True` takes them: "linear" and `feedback="softmax"` or "argmax". Without
            that, training feeds one-hot targets and decoding feeds logits, which goes wrong.
        feedback: What a step is fed of the output before it when there are no targets. None (the
            default): y_{t-1} itself, as in the article. An activation, by name or as a function:
            what it makes of y_{t-1}. "argmax": the one-hot vector of the largest entry, which is
            greedy decoding; no gradient goes through it.
        embedding_dim: Positive integer m for the paper's embedding E (o, m) of what a step is fed.
            Default: None, no E, x_t as wide as the output.
        unroll: Whether to unroll the loop over the output steps: faster for a few steps, but the
            time to compile grows with T_out, and the memory for training with T_out · T_in · u.
            Default: False, a symbolic loop, which computes tanh(s_{t-1} W_a + k_j) again for the
            gradient (with Keras 3.9 or later); on TensorFlow this rules out second derivatives.
        kernel_initializer, recurrent_initializer, bias_initializer: For V_a, W_a, U_a and E; for C,
            U, W and W_s; for b. Default: glorot_uniform, orthogonal, zeros. An initializer object
            with a seed gives all weights of one shape the same numbers.
        kernel_regularizer, recurrent_regularizer, bias_regularizer, kernel_constraint,
            recurrent_constraint, bias_constraint: For the same. Default: None.
        **kwargs: `name`, `dtype`, `trainable`: see `keras.layers.Layer`.

    Call arguments:
        encoded: The encoder's outputs, (batch, T_in, D). Batch and T_in may be unknown.
        targets: Vectors (batch, T_out, o) or ids, integers (batch, T_out), as good as their one-hot
            vectors. If given, a step is fed the target of the step before (teacher forcing). In an
            eager call, Keras before 3.4 turns NumPy's integers into floats: make them a tensor.
        mask: Boolean (batch, T_in), False at padding. Padded steps get weight 0, whatever stands in
            them, and s_0 is made from the first step that is not padded. By default the mask
            that comes with `encoded`. The outputs carry no mask.
        return_attention_scores: Whether to return `(outputs, scores)`. Default: False. Where one
            layer is called several times in a functional model, Keras wants the same in each call.
        encoded_mask: Filled in by Keras with the encoder's own mask when `targets` are given too.
        output_length: T_out of this call, in place of the layer's own.

    Returns:
        The outputs (batch, T_out, o), the scores α (batch, T_out, T_in), or both, in the layer's
        compute dtype.

    Raises:
        ValueError: If an argument is not as above, or `unroll=True` and T_out is unknown. Shapes
            that TensorFlow learns only when a graph runs raise its `InvalidArgumentError` then.

    Example:

    >>> letters, sounds = keras.Input((None,), dtype="int32"), keras.Input((None,), dtype="int32")
    >>> embedded = keras.layers.Embedding(27, 32, mask_zero=True)(letters)
    >>> encoded = keras.layers.GRU(64, return_sequences=True)(embedded)
    >>> decoder = AttentionDecoder(64, output_dim=40, feedback="argmax", embedding_dim=32)
    >>> trained = keras.Model([letters, sounds], decoder(encoded, sounds))  # by teacher forcing
    >>> model = keras.Model(letters, decoder(encoded, output_length=20))  # the same weights
    >>> model.output_shape
    (None, 20, 40)
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

    def build(self, encoded_shape, targets_shape=None):  # the second is in files saved earlier
        self._check_encoded(encoded_shape)
        D, u, o = encoded_shape[-1], self.units, self.output_dim
        m = self.embedding_dim or o

        def weight(name, shape, kind):
            initializer = getattr(self, f"{kind}_initializer")
            if isinstance(initializer, keras.initializers.Initializer):
                initializer = initializer.clone()  # one object would draw the same numbers again
            try:
                variable = self.add_weight(
                    name=name,
                    shape=shape,
                    initializer=initializer,
                    regularizer=getattr(self, f"{kind}_regularizer"),
                    constraint=getattr(self, f"{kind}_constraint"),
                    autocast=name != "V_a",  # the scores stay in float32 under mixed precision
                )
            except ValueError as error:  # "orthogonal", say, makes no vectors
                raise ValueError(
                    f"{kind}_initializer must be one that can make {name} of shape {shape}, such "
                    f"as 'glorot_uniform', got {type(initializer).__name__}: {error}"
                ) from error
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
        x = self._embed(y)  # x_1 = 0
        weights = self._joined_weights()
        with_scores = return_attention_scores or self.return_probabilities

        def step(target, states):
            x, s = states
            y, s, alpha = self._step(x if targets is None else target, s, memory, weights)
            x = self._feed(y) if targets is None else x
            return ops.concatenate([y, alpha], axis=-1) if with_scores else y, [x, s]

        if targets is None:  # nothing to feed: zeros for the number of steps
            steps_out = ops.shape(encoded)[1] if steps_out is None else steps_out
            fed = ops.zeros((ops.shape(x)[0], steps_out, 1), dtype=x.dtype)
        else:
            with keras.name_scope("targets_must_fit_encoded_and_output_length"):
                fed = ops.concatenate([x[:, None], self._embed(targets)], axis=1)[:, :-1]
                if steps_out is not None and fed.shape[1] is None:
                    fed = _fitted(fed, ops.zeros((ops.shape(x)[0], steps_out, 1), dtype=x.dtype))
        if self.unroll or keras.backend.backend() == "torch":  # whose loops are Python's anyway
            outputs, states = [], [x, s]
            for target in ops.unstack(fed, axis=1):
                output, states = step(target, states)
                outputs.append(output)
            outputs = ops.stack(outputs, axis=1)  # (B, Tout, o) or (B, Tout, o + Tin)
        else:
            # What RNN asks of a cell beside being callable; its own call would not be used.
            step.call, step.state_size = None, [x.shape[-1], self.units]
            step.compute_dtype = self.compute_dtype
            loop = keras.layers.RNN(step, return_sequences=True, dtype=self.compute_dtype)
            # Not loop(…), which would use the cell once more, and later, in a keras.RematScope.
            outputs = loop.call(fed, initial_state=[x, s])
            loop.cell = None  # else a cycle of references keeps the batch until it is collected
        if not with_scores:
            return outputs
        outputs, scores = outputs[..., : self.output_dim], outputs[..., self.output_dim :]
        if self.return_probabilities:
            outputs = scores
        return (outputs, scores) if return_attention_scores else outputs

    def start(self, encoded, mask=None):
        """Returns y_0 (batch, o), s_0 (batch, u) and the memory, which stays the same.

        The memory is a tuple of tensors (batch, T_in, …). This makes it one for k beams:
        `keras.tree.map_structure(lambda t: keras.ops.repeat(t, k, axis=0), memory)`.

        Args:
            encoded: The encoder's outputs, (batch, T_in, D).
            mask: Boolean (batch, T_in), False at padding. It has to be given: the mask that comes
                with `encoded` is for calls alone.
        """
        self._steps_out(encoded, mask=mask, output_length=1)  # checks them
        if not self.built:
            self.build(encoded.shape)
        h = self._cast(encoded)  # (B, Tin, D)
        h_1 = h[:, 0]  # (B, D)
        if mask is not None:
            with keras.name_scope("mask_must_fit_encoded"):
                mask = _fitted(ops.cast(mask, "bool")[:, :, None], h)  # (B, Tin, 1)
            h = ops.where(mask, h, 0)  # clears even a NaN
            first = ops.cumsum(ops.cast(mask, "int32"), axis=1) == 1  # and padding after it: 0
            h_1 = ops.sum(ops.where(first, h, 0), axis=1)
        # s_0 = tanh(h_1 W_s)   y_0 = 0
        s_0 = ops.tanh(ops.matmul(h_1, self._cast(self.W_s)))  # (B, u)
        y_0 = ops.zeros((ops.shape(h)[0], self.output_dim), dtype=h.dtype)  # (B, o)
        # k_j = h_j U_a + b_a
        k = ops.matmul(h, self._cast(self.U_a)) + self._cast(self.b_a)  # (B, Tin, u)
        return y_0, s_0, (h, k) if mask is None else (h, k, mask[:, :, 0])

    def step(self, y, s, memory):
        """Returns y_t (batch, o), s_t (batch, u) and the scores α_t (batch, T_in).

        >>> y, s, memory = decoder.start(encoded, mask)
        >>> for t in range(output_length):  # gives what decoder(encoded, mask=mask) gives
        ...     y, s, scores = decoder.step(y, s, memory)

        Args:
            y: y_{t-1} (batch, o), which goes through `feedback` if it is not all zeros, as y_0 is;
                or ids, integers (batch,), the symbols that were chosen.
            s: s_{t-1} (batch, u).
            memory: What `start` returned, or its rows in the order of y and s.
        """
        if _are_ids("y", y, 1):
            x = self._embed(y)
        else:
            y = self._cast(y)
            x = ops.where(ops.any(y != 0, axis=-1, keepdims=True), self._feed(y), 0)
        return self._step(x, self._cast(s), memory, self._joined_weights())

    def _feed(self, y):
        """feedback(y) E"""
        if self.feedback == "argmax":
            y = ops.argmax(y, axis=-1)
        elif self.feedback is not None:
            y = self.feedback(y)
        return self._embed(y)

    def _embed(self, y):
        """y E, for vectors or ids y."""
        if not keras.backend.is_int_dtype(y.dtype):
            y = self._cast(y)
            return ops.matmul(y, self._cast(self.E)) if self.embedding_dim else y
        if self.embedding_dim:
            return ops.take(self._cast(self.E), y, axis=0)
        return ops.one_hot(y, self.output_dim, dtype=self.compute_dtype)

    def _joined_weights(self):
        """Weights of the same vector side by side: one product a step."""

        def joined(*weights):
            return self._cast(ops.concatenate(weights, axis=-1))

        U = joined(self.W_a, self.U_r, self.U_z, self.U_o)  # (u, 3u + o)
        W = joined(self.W_r, self.W_z, self.W_p, self.W_o)  # (m, 3u + o)
        C = joined(self.C_r, self.C_z, self.C_p, self.C_o)  # (D, 3u + o)
        b = joined(self.b_r, self.b_z, self.b_p, self.b_o)  # (3u + o,)
        return U, W, C, b

    def _split(self, x):
        """The four parts of a product with joined weights."""
        u = self.units
        if keras.backend.backend() == "torch":  # which cannot export ops.split at indices
            return x[:, :u], x[:, u : 2 * u], x[:, 2 * u : 3 * u], x[:, 3 * u :]
        return ops.split(x, [u, 2 * u, 3 * u], axis=-1)  # XLA is slow at the gradients of slices

    def _step(self, x, s, memory, weights):
        """From x_t and s_{t-1} to y_t, s_t and α_t."""
        h, k, *mask = memory
        U, W, C, b = weights
        sW_a, sU_r, sU_z, sU_o = self._split(ops.matmul(s, U))
        # e_tj = tanh(s_{t-1} W_a + k_j) · V_a
        scores = _scores if self.unroll else _remat(_scores)
        e = scores(sW_a, k, ops.expand_dims(self.V_a, 1))  # (B, Tin)
        if mask:
            e = ops.where(mask[0], e, -3.4e38)  # about the least float32
        # α_t = softmax over j of e_t
        alpha = ops.softmax(e) if e.shape[-1] != 1 else ops.exp(e - e)  # the first warns of a 1
        if mask:
            alpha = ops.where(mask[0], alpha, 0)  # a sample that is all padding attends to nothing
        alpha = self._cast(alpha)
        # c_t = Σ_j α_tj h_j
        c = ops.squeeze(ops.matmul(ops.expand_dims(alpha, 1), h), 1)  # (B, D)
        # i_g = x_t W_g + c_t C_g + b_g for each g of r, z, p, o
        i_r, i_z, i_p, i_o = self._split(ops.matmul(x, W) + ops.matmul(c, C) + b)
        # r_t = σ(i_r + s_{t-1} U_r)
        r = ops.sigmoid(i_r + sU_r)  # (B, u)
        # z_t = σ(i_z + s_{t-1} U_z)
        z = ops.sigmoid(i_z + sU_z)  # (B, u)
        # p_t = activation(i_p + (r_t ∘ s_{t-1}) U_p)
        p = self.activation(i_p + ops.matmul(r * s, self._cast(self.U_p)))  # (B, u)
        # y_t = output_activation(i_o + s_{t-1} U_o)
        y = self.output_activation(i_o + sU_o)  # (B, o)
        # s_t = (1 - z_t) ∘ s_{t-1} + z_t ∘ p_t
        s = (1 - z) * s + z * p  # (B, u)
        return self._cast(y), self._cast(s), alpha

    def _cast(self, tensor):
        return ops.cast(tensor, self.compute_dtype)

    def compute_mask(self, inputs, previous_mask):
        return None  # the input's mask says nothing about the output steps

    def compute_output_shape(self, encoded_shape, targets_shape=None):
        encoded, targets = (
            shape and keras.KerasTensor(shape, "int32" if len(shape) == 2 else "float32")
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
        batch, steps_in, _ = encoded.shape
        outputs = keras.KerasTensor((batch, steps_out, self.output_dim), self.compute_dtype)
        scores = keras.KerasTensor((batch, steps_out, steps_in), self.compute_dtype)
        if self.return_probabilities:
            outputs = scores
        return (outputs, scores) if return_attention_scores else outputs

    def _steps_out(self, encoded, targets=None, mask=None, output_length=None):
        """T_out, or None where it is not known; raises ValueError for what does not fit."""
        self._check_encoded(keras.tree.map_structure(lambda part: tuple(part.shape), encoded))
        for name, value in (("targets", targets), ("mask", mask)):
            if isinstance(value, (list, tuple)):
                raise ValueError(
                    f"{name} must be a tensor or an array, such as numpy.array({name}), got a "
                    f"{type(value).__name__}"
                )
        batch, steps_in, _ = encoded.shape
        steps_out = _positive_integer("output_length", output_length, optional=True)
        steps_out = steps_out or self.output_length
        if targets is not None:
            right = (batch, steps_out, self.output_dim)
            right = right[:2] if _are_ids("targets", targets, 2) else right
            known = f" for output_length={steps_out}" if steps_out else ""
            _check_shape("targets" + known, targets, right)
        if mask is not None:
            _check_shape("mask", mask, (batch, steps_in))
        steps_out = steps_out or (steps_in if targets is None else targets.shape[1])
        if self.unroll and steps_out is None:
            raise ValueError(
                "unroll=True needs a known number of output steps: give output_length, or encoded "
                f"with a known number of time steps, got {tuple(encoded.shape)}"
            )
        return steps_out

    def _check_encoded(self, shape):
        """Raises ValueError unless it is (batch, T_in, D)."""
        D = self.W_s.shape[0] if self.built else None
        is_list = any(isinstance(part, (list, tuple)) for part in shape)
        if is_list or len(shape) != 3 or shape[-1] is None or D not in (None, shape[-1]):
            hint = (
                ": call layer(encoded, targets), not layer([encoded, targets])" if is_list else ""
            )
            raise ValueError(
                f"encoded must have the shape (batch, time steps, {D or 'a known width'}), "
                f"got {tuple(shape)}{hint}"
            )

    def get_config(self):
        config = super().get_config()
        for name in ("units", "output_dim", "return_probabilities", "output_length", "unroll"):
            config[name] = getattr(self, name)
        config["embedding_dim"] = self.embedding_dim
        for name in ("activation", "output_activation", "feedback"):
            value = getattr(self, name)
            config[name] = keras.activations.serialize(value) if callable(value) else value
        for kind in ("kernel", "recurrent", "bias"):
            for part in ("initializer", "regularizer", "constraint"):
                serialize = getattr(keras, f"{part}s").serialize
                config[f"{kind}_{part}"] = serialize(getattr(self, f"{kind}_{part}"))
        return config


# Computes a function again for its gradient instead of keeping what is in between: with the scores,
# that would be Tout · Tin · u numbers.
_remat = getattr(keras, "remat", lambda function: function)  # Keras 3.9


def _scores(sW_a, k, V_a):
    """e_t = tanh(s_{t-1} W_a + k_j) · V_a, V_a as (u, 1), in no less than float32: no overflow."""
    dtype = keras.backend.standardize_dtype(k.dtype)
    dtype = "float32" if dtype in ("float16", "bfloat16") else dtype
    tanh = ops.cast(ops.tanh(ops.expand_dims(sW_a, 1) + k), dtype)  # (B, Tin, u)
    return ops.squeeze(ops.matmul(tanh, ops.cast(V_a, dtype)), 2)  # (B, Tin)


def _fitted(tensor, other):
    """The tensor (B, T, …). A TensorFlow graph fails if B or T turn out not to be other's."""
    zeros = ops.zeros_like(other[:, :, :1], dtype=tensor.dtype)
    return ops.concatenate([tensor, zeros], axis=-1)[:, :, :-1]  # broadcasts nothing


def _are_ids(name, y, rank):
    """Whether y are ids, integers of this rank, and not vectors."""
    ids = keras.backend.is_int_dtype(y.dtype)
    if len(y.shape) != (rank if ids else rank + 1):
        raise ValueError(
            f"{name} must be integers of rank {rank} (ids) or floats of rank {rank + 1} (vectors), "
            f"got {keras.backend.standardize_dtype(y.dtype)} of shape {tuple(y.shape)}"
        )
    return ids


def _check_shape(name, tensor, right):
    """Raises ValueError unless the shape is right as far as it is known."""
    shape = tuple(tensor.shape)
    known = [(a, b) for a, b in zip(shape, right) if a is not None and b is not None]
    if len(shape) != len(right) or any(a != b for a, b in known):
        raise ValueError(f"{name} must have the shape {right}, got {shape}")


def _feedback(value):
    try:
        return value if value in (None, "argmax") else keras.activations.get(value)
    except (TypeError, ValueError):
        raise ValueError(
            f"feedback must be None, an activation's name or function, or 'argmax', got {value!r}"
        ) from None


def _positive_integer(name, value, optional=False):
    if optional and value is None:
        return None
    try:
        number = range(value).stop  # takes what is an integer, of NumPy's too
    except TypeError:
        number = 0
    if number < 1 or isinstance(value, bool):
        raise ValueError(f"{name} must be a positive integer, got {value!r}")
    return number
