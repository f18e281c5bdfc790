"""Random problems for the expert MLP, a float64 reference that walks tokens and slots one by one, and the comparison."""

from dataclasses import dataclass, field

import numpy as np

import libmoe
from harness import ROUTINGS, TOLERANCES, array, assert_close, host, on_cpu, poisoned, report, report_fields, rounded
from test_activation import ACTIVATIONS, DTYPES, GATED, ORDERS, act_of_h, gradient_of_h

TOKENS, ROWS = libmoe.LAYOUT_TOKENS, libmoe.LAYOUT_ROWS
WEIGHTS_AT = {name: getattr(libmoe, "WEIGHTS_AT_" + name) for name in ("COMBINE", "ACTIVATION", "INPUT")}
LAYOUTS = {"OUT_IN": libmoe.WEIGHT_OUT_IN, "IN_OUT": libmoe.WEIGHT_IN_OUT}


def dtypes():
    return DTYPES if on_cpu() else DTYPES[1:]


@dataclass
class Plan:
    """Rows sorted by expert, then token, then slot; groups padded to a multiple of `alignment`."""

    ids: np.ndarray
    experts: int
    tokens: int
    alignment: int = 1
    spare: int = 0
    rows: list = field(default_factory=list)

    def __post_init__(self):
        offsets, sizes = [0], []
        self.row_of_slot = np.full(self.ids.size, -1)
        for e in range(self.experts):
            slots = [s for s in range(self.tokens * self.top_k) if self.ids.flat[s] == e]
            self.rows += [(offsets[-1] + i, e, s // self.top_k, s) for i, s in enumerate(slots)]
            sizes.append(len(slots))
            offsets.append(offsets[-1] + -(-len(slots) // self.alignment) * self.alignment)
        self.offsets, self.sizes, self.end = np.array(offsets), np.array(sizes), offsets[-1]
        self.rows_max = self.end + self.spare
        # What lies beyond the last group is not to be looked at.
        self.token_of_row, self.slot_of_row = np.full((2, self.rows_max), 10**6)
        self.token_of_row[:self.end] = self.slot_of_row[:self.end] = -1
        for r, _, t, s in self.rows:
            self.row_of_slot[s], self.token_of_row[r], self.slot_of_row[r] = r, t, s

    @property
    def top_k(self):
        return self.ids.shape[1]


@dataclass
class Case:
    """One draw of everything that can be chosen."""

    plan: Plan
    dtype: str
    d: int
    f: int
    activation: str
    order: str
    block: int
    constants: dict
    weights_at: str
    weights: str  # "none", "slot", "row"
    weights_dtype: str
    input_rows: bool
    output_rows: bool
    w1_layout: str
    w2_layout: str
    split: bool
    b1: bool
    b2: bool
    bias_dtype: str
    missing: set  # absent experts: NULL in W1 or W2
    sizes_given: bool
    map_dtype: str
    y_dtype: str
    dw_dtype: str
    add: list  # modes of y, dx, dW, db: "overwrite", "add", or a device flag 0 or 1
    keep_h: bool
    recompute: bool
    in_place: bool
    delayed: bool
    pad: int  # extra elements between rows

    @property
    def hidden(self):
        return 2 * self.f if self.activation in GATED else self.f

    def desc(self, **changes):
        plan = self.plan
        return {
            "dtype": self.dtype, "num_tokens": len(plan.ids), "rows_max": plan.rows_max, "top_k": plan.top_k,
            "num_experts": plan.experts, "hidden_size": self.d, "ffn_size": self.f,
            "input_layout": ROWS if self.input_rows else TOKENS, "output_layout": ROWS if self.output_rows else TOKENS,
            "weights_at": WEIGHTS_AT[self.weights_at], "w1_layout": LAYOUTS[self.w1_layout],
            "w2_layout": LAYOUTS[self.w2_layout], "activation": ACTIVATIONS[self.activation],
            "gate_order": ORDERS[self.order], "gate_block": self.block if self.order == "GATE_INTERLEAVED" else 0,
            "clamp_limit": self.constants.get("limit", 0), "clamp_alpha": self.constants.get("alpha", 0), **changes}


def draw(rng, **fixed):
    experts = int(rng.integers(1, 7))
    top_k = int(rng.integers(1, min(4, experts) + 1))
    bound = int(rng.choice([0, 1, 2, 7, 20, 40]))
    routing = str(rng.choice(list(ROUTINGS)))
    plan = Plan(ROUTINGS[routing](rng, bound, experts, top_k), experts, int(rng.integers(bound // 2, bound + 1)),
                int(rng.choice([1, 1, 4, 16])), int(rng.integers(0, 9)))
    activation = str(rng.choice(list(ACTIVATIONS)))
    order = str(rng.choice(list(ORDERS))) if activation in GATED else "GATE_FIRST"
    dtype = str(rng.choice(dtypes()))
    block = int(rng.choice([1, 2, 8]))
    wide = [dtype, "fp32"]
    flag = lambda likely=0.5: bool(rng.random() < likely)
    case = dict(
        plan=plan, dtype=dtype, d=int(rng.choice([1, 3, 8, 24, 40, 64])), f=block * int(rng.choice([1, 3, 4, 8])),
        activation=activation, order=order, block=block, constants={"limit": 1.5, "alpha": 1.2} if flag() else {},
        weights_at=str(rng.choice(list(WEIGHTS_AT))), weights=str(rng.choice(["none", "slot", "row"])),
        weights_dtype=str(rng.choice(dtypes())), input_rows=flag(), output_rows=flag(),
        w1_layout=str(rng.choice(list(LAYOUTS))), w2_layout=str(rng.choice(list(LAYOUTS))),
        split=activation in GATED and order != "GATE_INTERLEAVED" and flag(0.3), b1=flag(), b2=flag(),
        bias_dtype=str(rng.choice(wide)), missing=set(np.flatnonzero(rng.random(experts) < 0.3)) if flag(0.3) else set(),
        sizes_given=flag(), map_dtype=str(rng.choice(["int32", "int64"])), y_dtype=str(rng.choice(wide)),
        dw_dtype=str(rng.choice(wide)), add=[["overwrite", "add", 0, 1][i] for i in rng.integers(0, 4, 4)],
        keep_h=flag(0.7), recompute=flag(0.3), in_place=flag(), delayed=flag(0.3), pad=int(rng.choice([0, 0, 8, 3])))
    return Case(**{**case, **fixed})


class Problem:
    """A case's numbers: what the device holds, as float64, and what comes of it."""

    def __init__(self, rng, case):
        c, plan = self.case, self.plan = case, case.plan
        self.rng = rng
        tokens, experts, d, f, hidden = len(plan.ids), plan.experts, c.d, c.f, c.hidden
        normal = lambda shape, dtype, scale=1.0: rounded(rng.normal(size=shape) * scale, dtype)
        self.w1 = normal((experts, hidden, d), c.dtype, 1.5 / np.sqrt(d))
        self.w2 = normal((experts, d, f), c.dtype, 1 / np.sqrt(f))
        self.b1 = normal((experts, hidden), c.bias_dtype, 0.5) if c.b1 else np.zeros((experts, hidden))
        self.b2 = normal((experts, d), c.bias_dtype, 0.5) if c.b2 else np.zeros((experts, d))
        self.present = np.array([e not in c.missing for e in range(experts)])
        self.rows = [row for row in plan.rows if self.present[row[1]]]
        here = np.array([row[0] for row in self.rows], int)
        self.here = here
        # Padding is zero and weighs 0; where sizes tell that it is padding, and in all else, nothing may be read.
        unread_row = np.full((plan.rows_max, 1), np.nan)
        if not c.sizes_given:
            padding = np.setdiff1d(np.arange(plan.end), [row[0] for row in plan.rows])
            unread_row[padding] = 0
        unread_token = np.full((tokens, 1), np.nan)

        def values(rows, columns):
            x = (unread_row if rows else unread_token) * np.ones(columns)
            which = here if rows else slice(0, plan.tokens)
            x[which] = normal(x.shape, c.dtype)[which]
            return x

        self.x, self.dy = values(c.input_rows, d), values(c.output_rows, d)
        slots = np.full(plan.ids.size, np.nan)
        slots[:plan.tokens * plan.top_k] = normal(plan.tokens * plan.top_k, c.weights_dtype)
        rows = unread_row[:, 0].copy()
        routed = [row[0] for row in plan.rows]
        rows[routed] = normal(len(routed), c.weights_dtype)
        self.slot_weights, self.row_weights = slots, rows
        self.reference()

    def weight(self, row, slot):
        return {"none": 1.0, "slot": self.slot_weights[slot], "row": self.row_weights[row]}[self.case.weights]

    def act(self, h):
        value, *_ = act_of_h(self.case.activation, h[None], self.case.order, self.case.block, **self.case.constants)
        return value[0]

    def dact(self, h, gradient):
        c = self.case
        return gradient_of_h(c.activation, h[None], gradient[None], c.order, c.block, **c.constants)[0]

    def reference(self):
        c, plan = self.case, self.plan
        at_input = c.weights_at == "INPUT"
        shape_x, shape_y = self.x.shape, self.dy.shape
        self.y, self.dx = np.zeros(shape_y), np.zeros(shape_x)
        self.h, self.dh = np.zeros((2, plan.rows_max, c.hidden))
        self.weighted_act = np.zeros((plan.rows_max, c.f))
        self.dw1, self.dw2, self.db1, self.db2 = (np.zeros_like(v) for v in (self.w1, self.w2, self.b1, self.b2))
        self.dslot, self.drow, self.dot_norm = np.zeros(plan.ids.size), np.zeros(plan.rows_max), 0.0
        for r, e, t, s in self.rows:
            at_x, at_y = r if c.input_rows else t, r if c.output_rows else t
            w = self.weight(r, s)
            before, after = (w, 1.0) if at_input else (1.0, w)
            # As they are kept: rounding can move h across a kink.
            x = rounded(before * self.x[at_x], c.dtype)
            h = rounded(self.w1[e] @ x + self.b1[e], c.dtype)
            act = self.act(h)
            out = self.w2[e] @ act + self.b2[e]
            self.y[at_y] += after * out
            # Backward, from the output to the input.
            dout = after * self.dy[at_y]
            dh = self.dact(h, self.w2[e].T @ dout)
            dx = self.w1[e].T @ dh
            self.dx[at_x] += before * dx
            self.dw1[e] += np.outer(dh, x)
            self.db1[e] += dh
            self.dw2[e] += np.outer(dout, act)
            self.db2[e] += dout
            terms = self.x[at_x] * dx if at_input else self.dy[at_y] * out
            self.dslot[s] = self.drow[r] = terms.sum()
            self.dot_norm = np.hypot(self.dot_norm, np.linalg.norm(terms))
            self.h[r], self.dh[r], self.weighted_act[r] = h, dh, after * act


class Run:
    """The library's side of a problem."""

    def __init__(self, ctx, problem, guarded):
        self.ctx, self.p, self.guarded = ctx, problem, guarded
        self.case, self.plan = problem.case, problem.plan
        c, plan = self.case, self.plan
        index = lambda x: array(x, c.map_dtype)
        self.routing = {"group_offsets": array(plan.offsets, "int64"), "token_of_row": index(plan.token_of_row),
                        "slot_of_row": index(plan.slot_of_row), "row_of_slot": index(plan.row_of_slot)}
        if c.sizes_given:
            self.routing["group_sizes"] = array(plan.sizes, "int64")
        if plan.tokens < len(plan.ids) or problem.rng.random() < 0.5:
            self.routing["num_tokens"] = array(np.array(plan.tokens), c.map_dtype)
        if problem.rng.random() < 0.5:
            self.routing["slot_offsets"] = index(np.arange(len(plan.ids) + 1) * plan.top_k)
        if c.weights == "slot":
            self.routing["weights"] = array(problem.slot_weights, c.weights_dtype)
        if c.weights == "row":
            self.routing["row_weights"] = array(problem.row_weights, c.weights_dtype)
        self.weights = {"w2": self.experts(problem.w2, c.w2_layout, c.missing and problem.rng.random() < 0.5)}
        any_null = isinstance(self.weights["w2"], (list, dict))
        by_pointers = bool(c.missing) and not any_null or problem.rng.random() < 0.3
        for name, w1 in self.halves("w1", problem.w1).items():
            self.weights[name] = self.experts(w1, c.w1_layout, by_pointers)
        if c.b1:
            self.weights["b1"] = array(problem.b1, c.bias_dtype)
        if c.b2:
            self.weights["b2"] = array(problem.b2, c.bias_dtype)
        self.x, self.dy = self.pitched(problem.x), self.pitched(problem.dy)
        self.report = report()

    def halves(self, name, w):
        """W1, or its two halves, from [E, 2f, ...]."""
        c = self.case
        if not c.split:
            return {name: w}
        first, second = w[:, :c.f], w[:, c.f:]
        return {name: first, name + "_up": second} if c.order == "GATE_FIRST" else {name: second, name + "_up": first}

    def experts(self, w, layout, by_pointers):
        """[E, out, in] in a layout, stacked or by pointers; absent experts are NULL, their weights NaN."""
        w = np.where(self.p.present[:, None, None], w, np.nan)
        w = w if layout == "OUT_IN" else w.swapaxes(1, 2)
        if not by_pointers:
            return self.somewhere(w)
        if not self.p.present.any():
            return {"pointers": array(np.zeros(len(w)), "int64"), "dtype": self.case.dtype}
        return [array(w[e], self.case.dtype) if self.p.present[e] else None for e in range(len(w))]

    def somewhere(self, w):
        """A copy that begins at a multiple of 16 bytes, or at any element."""
        first = int(self.p.rng.integers(0, 8)) if self.p.rng.random() < 0.3 else 0
        place = array(np.zeros(w.size + first), self.case.dtype)[first:].reshape(w.shape)
        place[...] = array(w, self.case.dtype)
        return place

    def pitched(self, x):
        wide = np.full((x.shape[0], x.shape[1] + self.case.pad), np.nan)
        wide[:, :x.shape[1]] = x
        return array(wide, self.case.dtype)[:, :x.shape[1]]

    def output(self, shape, dtype, old=None):
        out = self.guarded(shape, dtype, shape[-1] + self.case.pad if len(shape) == 2 else None)
        if old is not None:
            out[...] = array(old, dtype)
        return out

    def summed(self, shape, dtype, mode):
        """An output that is summed: (tensor, mode, what it held, as float64)."""
        old = rounded(self.p.rng.normal(size=shape), dtype) if mode in ("add", 1) else np.zeros(shape)
        return (self.output(shape, dtype, None if mode in ("overwrite", 0) else old),
                mode if isinstance(mode, str) else array(np.array(mode), "int32"), old)

    def call(self, name, args, **changes):
        desc = self.case.desc(**changes)
        size = self.ctx.query(name + "_workspace_size", desc)
        # NaN in every float type.
        memory = array(np.full(size + 256, 255), "uint8")
        address = memory.data_ptr() if hasattr(memory, "data_ptr") else memory.ctypes.data
        start = -address % 256
        self.ctx.run(name, desc, {**args, "report": self.report}, workspace=memory[start:start + size] if size else None)
        assert report_fields(self.report)[0] == libmoe.FAULT_NONE, self.ctx.report_message(self.report)

    def tolerance(self, *others):
        return max((self.case.dtype, *others), key=lambda d: TOLERANCES[d])

    def close(self, out, reference, what, *others):
        dtype, reference = self.tolerance(*others), np.asarray(reference)
        if np.linalg.norm(reference) >= 1:
            # The errors of a few elements do not average out.
            return assert_close(out, reference, dtype, what, 4.0 if reference.size >= 256 else 10.0)
        # So little is left of sums of numbers around 1 only where they cancel.
        error = np.linalg.norm(host(out) - reference)
        assert error <= 4 * TOLERANCES[dtype], f"{what}: absolute error {error:.3g} for {dtype}"

    def dots_close(self, out, reference, what):
        """Dot products may cancel: their errors are those of their terms."""
        tolerance = 4 * TOLERANCES[self.tolerance(self.case.weights_dtype)]
        error, size = np.linalg.norm(host(out) - reference), max(np.linalg.norm(reference), self.p.dot_norm)
        assert error <= tolerance * size, f"{what}: off by {error:.3g} of {size:.3g}, at most {tolerance:.3g} of it"

    def rows_close(self, out, reference, what, *others):
        """Rows that are here match, gaps that are known to be gaps are zero, what lies beyond is untouched."""
        compared = slice(0, self.plan.end) if self.case.sizes_given else self.p.here
        self.close(out[compared], reference[compared], what, *others)
        assert poisoned(out[self.plan.end:]).all(), f"{what}: rows beyond the last group were written"

    def tokens_close(self, out, reference, what, *others):
        self.close(out[:self.plan.tokens], reference[:self.plan.tokens], what, *others)

    def forward(self):
        c, p = self.case, self.p
        y, mode, old = self.summed(p.y.shape, c.y_dtype, c.add[0])
        h = self.output((self.plan.rows_max, c.hidden), c.dtype) if c.keep_h else None
        self.call("expert_mlp_fwd", {**self.routing, **self.weights, "x": self.x, "y": y, "y_mode": mode, "h": h})
        self.check_output(y, p.y, old, mode, c.output_rows, "y", c.y_dtype)
        if h is not None:
            self.close(h[p.here], p.h[p.here], "h")
        return h

    def check_output(self, out, reference, old, mode, is_rows, what, dtype):
        if is_rows and not (isinstance(mode, str) and mode == "overwrite"):
            # Rows that are not written keep what they held.
            here = self.p.here
            self.close(out[here], (reference + old)[here], what, dtype)
        elif is_rows:
            self.rows_close(out, reference, what, dtype)
        else:
            self.tokens_close(out, reference + old, what, dtype)

    def backward(self, h):
        c, p = self.case, self.p
        dx, dx_mode, dx_old = self.summed(p.dx.shape, c.y_dtype, c.add[1])
        dh = h if c.in_place and h is not None and not c.recompute else self.output((self.plan.rows_max, c.hidden), c.dtype)
        args = {"dy": self.dy, "x": self.x, "h": None if c.recompute else h, "dx": dx, "dx_mode": dx_mode, "dh": dh}
        if c.weights == "slot":
            args["dweights"] = self.output((p.dslot.size,), c.weights_dtype)
        if c.weights == "row":
            args["drow_weights"] = self.output((p.drow.size,), c.weights_dtype)
        grads, modes, olds = self.gradients()
        act = self.output((self.plan.rows_max, c.f), c.dtype) if c.delayed or p.rng.random() < 0.3 else None
        self.call("expert_mlp_bwd", {**self.routing, **self.weights, **args, "weighted_act": act,
                                     **({} if c.delayed else {**grads, **modes})})
        if c.delayed:
            of_fc1 = {name: v for name, v in grads.items() if name in ("dw1", "dw1_up", "db1")}
            of_fc2 = {name: v for name, v in grads.items() if name in ("dw2", "db2")}
            routing = dict(self.routing)
            if c.missing:
                # Without W1 and W2 absent experts are not known: their groups are given as empty.
                routing["group_sizes"] = array(np.where(p.present, self.plan.sizes, 0), "int64")
            self.call("expert_mlp_wgrad", {**routing, **modes, **of_fc1, "x": self.x, "dh": dh})
            self.call("expert_mlp_wgrad", {**routing, **modes, **of_fc2, "dy": self.dy, "weighted_act": act})
        self.check_output(dx, p.dx, dx_old, dx_mode, c.input_rows, "dx", c.y_dtype)
        (self.rows_close if h is not dh else self.here_close)(dh, p.dh, "dh")
        if act is not None:
            self.rows_close(act, p.weighted_act, "weighted_act")
        for name, wanted in (("dweights", p.dslot), ("drow_weights", p.drow)):
            if name in args:
                inside = slice(0, self.plan.tokens * self.plan.top_k if name == "dweights" else self.plan.end)
                self.dots_close(args[name][inside], wanted[inside], name)
                assert poisoned(args[name][inside.stop:]).all()
        for name, out in grads.items():
            reference = self.gradient(name) + olds[name]
            dtype = c.bias_dtype if name in ("db1", "db2") else c.dw_dtype
            if isinstance(out, list):
                for e, tensor in enumerate(out):
                    if tensor is not None:
                        self.close(tensor, reference[e], f"{name}[{e}]", dtype)
            else:
                self.close(out, reference, name, dtype)

    def here_close(self, out, reference, what):
        self.close(out[self.p.here], reference[self.p.here], what)

    def gradient(self, name):
        p, c = self.p, self.case
        if name in ("db1", "db2"):
            return getattr(p, name)
        dw = p.dw2 if name == "dw2" else self.halves("dw1", p.dw1)[name]
        return dw if (c.w2_layout if name == "dw2" else c.w1_layout) == "OUT_IN" else dw.swapaxes(1, 2)

    def gradients(self):
        c, p = self.case, self.p
        grads, olds = {}, {}
        for name in ("dw2", *self.halves("dw1", p.dw1)):
            shape = self.gradient(name).shape
            if p.rng.random() < 0.3:
                frozen = p.rng.random(shape[0]) < 0.3
                frozen[p.rng.integers(shape[0])] = False
                parts = [self.summed(shape[1:], c.dw_dtype, c.add[2]) for _ in range(shape[0])]
                grads[name] = [None if frozen[e] else part[0] for e, part in enumerate(parts)]
                olds[name] = np.stack([part[2] for part in parts])
            else:
                grads[name], _, olds[name] = self.summed(shape, c.dw_dtype, c.add[2])
        for name in ("db1", "db2"):
            grads[name], _, olds[name] = self.summed(self.gradient(name).shape, c.bias_dtype, c.add[3])
        as_mode = lambda mode: mode if isinstance(mode, str) else array(np.array(mode), "int32")
        return grads, {"dw_mode": as_mode(c.add[2]), "db_mode": as_mode(c.add[3])}, olds


def check(ctx, rng, guarded, **fixed):
    case = draw(rng, **fixed)
    try:
        run = Run(ctx, Problem(rng, case), guarded)
        h = run.forward()
        if h is None and not case.recompute:
            case.recompute = True
        run.backward(h)
    except BaseException:
        print({**vars(case), "plan": (case.plan.ids.shape, case.plan.tokens, case.plan.offsets, case.plan.sizes)})
        raise
