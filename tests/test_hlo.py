"""The reader of compiled programs, on programs made by hand whose answers are known."""

import pytest

from benchmarks import hlo, hlo_findings

COST = 'backend_config={"window_config":{"estimated_cycles":"%d"}}'

FUSED_LESS = """
%less_than_limit (limit: s32[], i: s32[]) -> pred[] {
  %i = s32[] parameter(1)
  %limit = s32[] parameter(0)
  ROOT %less = pred[] compare(%i, %limit), direction=LT
}
"""


def body_and_condition(name, limit, cost, called="", step=1):
    """A loop's body, which costs `cost` and runs the operations `called`, and its condition."""
    return f"""
%{name}.body (carried: (s32[], f32[8])) -> (s32[], f32[8]) {{
  %carried = (s32[], f32[8]) parameter(0)
  %i = s32[] get-tuple-element(%carried), index=0
  %step = s32[] constant({step})
  %copied = s32[] copy(%i)
  %next = s32[] add(%copied, %step)
  %x = f32[8]{{0:T(256)}} get-tuple-element(%carried), index=1
  %y = f32[8]{{0:T(256)}} negate(%x), metadata={{op_name="selection/neg"}}, {COST % cost}
{called}  ROOT %out = (s32[], f32[8]) tuple(%next, %y)
}}

%{name}.condition (carried: (s32[], f32[8])) -> pred[] {{
  %limit = s32[] constant({limit})
  %carried = (s32[], f32[8]) parameter(0)
  %i = s32[] get-tuple-element(%carried), index=0
  ROOT %less = pred[] compare(%i, %limit), direction=LT
}}
"""


def entry(loops, start=0):
    return f"""
ENTRY %main (x: f32[8]) -> f32[8] {{
  %x = f32[8]{{0:T(256)}} parameter(0)
  %start = s32[] constant({start})
  %init = (s32[], f32[8]) tuple(%start, %x)
{loops}  ROOT %result = f32[8]{{0:T(256)}} get-tuple-element(%loop), index=1
}}
"""


def while_op(name, init="%init", result="%loop"):
    return (
        f"  {result} = (s32[], f32[8]) while({init}), condition=%{name}.condition, "
        f'body=%{name}.body, metadata={{op_name="jit(f)/selection/while"}}\n'
    )


def module(*parts):
    return hlo.parse("HloModule jit_f, is_scheduled=true\n" + "\n".join(parts))


def cycles(program, stops=lambda op: None):
    return hlo.total_cycles(list(hlo.executions(program, stops)))


@pytest.mark.parametrize(
    "shape,size",
    [
        ("f32[]", 4),
        ("f32[8,128]{1,0:T(8,128)S(1)}", 4096),
        ("bf16[3,5]{1,0:T(8,128)(2,1)}", 30),
        ("pred[7]", 7),
        ("s4[8]", 4),
        ("u32[<=16]", 64),
        ("(f32[2]{0}, (bf16[4], s32[]), /*index=3*/token[])", 8 + 8 + 4),
        ("f8e4m3fn[10]", 10),
    ],
)
def test_bytes_of_a_shape(shape, size):
    assert hlo.num_bytes(shape) == size


def test_an_operation_is_taken_apart():
    program = module(
        "ENTRY %main (a: f32[2], b: f32[2]) -> (f32[2], f32[2]) {",
        "  %a = f32[2]{0} parameter(0)",
        "  %b = f32[2]{0} parameter(1)",
        "  ROOT %pair.1 = (f32[2]{0}, /*index=1*/f32[2]{0}) fusion(%a, /*index=1*/f32[2]{0} %b), "
        'kind=kLoop, calls=%inner.2, metadata={op_name="jit(f)/encoder/add" id=3}, ' + COST % 12,
        "}",
        "%inner.2 (a: f32[2], b: f32[2]) -> (f32[2], f32[2]) {",
        "  %c = f32[2]{0} parameter(0)",
        "  ROOT %d = (f32[2]{0}, f32[2]{0}) tuple(%c, %c)",
        "}",
    )
    op = program.roots["main"]
    assert (op.name, op.opcode, op.operands) == ("pair.1", "fusion", ["a", "b"])
    assert (op.op_name, op.cycles, op.called("calls")) == ("jit(f)/encoder/add", 12, ["inner.2"])
    assert op.shape == "(f32[2]{0}, /*index=1*/f32[2]{0})"
    assert [inner.name for inner in hlo.inside(program, op)] == ["c", "d"]
    assert program.entry == "main"


def test_text_that_is_no_program_is_refused():
    with pytest.raises(ValueError, match="no entry"):
        hlo.parse("HloModule empty\n")
    with pytest.raises(ValueError, match="not an operation"):
        hlo.parse("ENTRY %main (x: f32[]) -> f32[] {\n  %x = nonsense\n}\n")


@pytest.mark.parametrize(
    "start,step,limit,count", [(0, 1, 49, 49), (5, 1, 49, 44), (0, 4, 10, 3), (9, 1, 3, 0)]
)
def test_a_fixed_loop_counts_as_often_as_it_runs(start, step, limit, count):
    program = module(
        body_and_condition("a", limit, cost=100, step=step), entry(while_op("a"), start)
    )
    loop = program.computations["main"]["loop"]
    assert hlo.trips(program, "main", loop) == (count, True)
    assert cycles(program) == 100 * count


def test_the_compilers_own_count_is_believed():
    known = while_op("a").rstrip() + ', backend_config={"known_trip_count":{"n":"7"}}\n'
    assert cycles(module(body_and_condition("a", 49, cost=100), entry(known))) == 700


def test_nested_loops_multiply():
    inner = while_op("inner", init="%carried", result="%nested")
    program = module(
        body_and_condition("inner", 3, cost=10),
        body_and_condition("outer", 5, cost=1000, called=inner),
        entry(while_op("outer")),
    )
    assert cycles(program) == 5 * (1000 + 3 * 10)


def test_a_limit_inside_a_fused_comparison_or_carried_by_the_loop_is_found():
    fused = f"""
%a.condition (carried: (s32[], f32[8])) -> pred[] {{
  %limit = s32[] constant(6)
  %carried = (s32[], f32[8]) parameter(0)
  %i = s32[] get-tuple-element(%carried), index=0
  ROOT %less = pred[] fusion(%limit, %i), kind=kLoop, calls=%less_than_limit
}}
{FUSED_LESS}"""
    body = body_and_condition("a", 0, cost=10).split("%a.condition")[0]
    assert cycles(module(body, fused, entry(while_op("a")))) == 60

    carried = """
%b.body (carried: (s32[], s32[])) -> (s32[], s32[]) {
  %carried = (s32[], s32[]) parameter(0)
  %i = s32[] get-tuple-element(%carried), index=0
  %limit = s32[] get-tuple-element(%carried), index=1
  %one = s32[] constant(1)
  %next = s32[] add(%i, %one), backend_config={"estimated_cycles":"3"}
  ROOT %out = (s32[], s32[]) tuple(%next, %limit)
}
%b.condition (carried: (s32[], s32[])) -> pred[] {
  %carried = (s32[], s32[]) parameter(0)
  %i = s32[] get-tuple-element(%carried), index=0
  %limit = s32[] get-tuple-element(%carried), index=1
  ROOT %greater = pred[] compare(%limit, %i), direction=GT
}
ENTRY %main (x: f32[8]) -> s32[] {
  %zero = s32[] constant(0)
  %limit = s32[] constant(11)
  %init = (s32[], s32[]) tuple(%zero, %limit)
  %loop = (s32[], s32[]) while(%init), condition=%b.condition, body=%b.body
  ROOT %result = s32[] get-tuple-element(%loop), index=0
}
"""
    assert cycles(module(carried)) == 33


DATA_DEPENDENT = """
%a.condition (carried: (s32[], f32[8])) -> pred[] {
  %limit = s32[] constant(49)
  %carried = (s32[], f32[8]) parameter(0)
  %i = s32[] get-tuple-element(%carried), index=0
  %less = pred[] compare(%i, %limit), direction=LT
  %x = f32[8] get-tuple-element(%carried), index=1
  %any = pred[] fusion(%x), kind=kLoop, calls=%any_left
  ROOT %both = pred[] and(%less, %any)
}
%any_left (x: f32[8]) -> pred[] {
  %x = f32[8] parameter(0)
  %zero = f32[] constant(0)
  ROOT %some = pred[] compare(%x, %zero), direction=GT
}
"""


def test_a_loop_that_looks_at_the_data_is_bounded_by_its_counter():
    body = body_and_condition("a", 0, cost=100).split("%a.condition")[0]
    program = module(body, DATA_DEPENDENT, entry(while_op("a")))
    assert hlo.trips(program, "main", program.computations["main"]["loop"]) == (49, False)
    assert cycles(program) == 4900
    assert cycles(program, lambda op: 5) == 500
    assert cycles(program, lambda op: 60) == 4900


def test_a_loop_without_a_bound_wants_to_be_told():
    unbounded = DATA_DEPENDENT.replace("and(%less, %any)", "copy(%any)").replace(
        "%less = pred[] compare(%i, %limit), direction=LT", "%less = s32[] add(%i, %limit)"
    )
    body = body_and_condition("a", 0, cost=100).split("%a.condition")[0]
    program = module(body, unbounded, entry(while_op("a")))
    assert hlo.trips(program, "main", program.computations["main"]["loop"]) == (None, False)
    with pytest.raises(ValueError, match=r"loop \(jit\(f\)/selection/while\) has no bound"):
        cycles(program)
    assert cycles(program, lambda op: 8) == 800


BRANCHES = f"""
%cheap (x: f32[8]) -> f32[8] {{
  ROOT %x = f32[8] parameter(0)
}}
%dear (x: f32[8]) -> f32[8] {{
  %x = f32[8] parameter(0)
  ROOT %y = f32[8] negate(%x), {COST % 30}
}}
"""
CHOICE = (
    "  %chosen = f32[8] conditional(%go, %x, %x), branch_computations={%cheap, %dear}, "
    'metadata={op_name="jit(f)/cond"}\n'
)


def test_a_conditional_takes_its_dearest_branch_until_the_loops_work_is_done():
    program = module(
        BRANCHES, body_and_condition("a", 49, cost=2, called=CHOICE), entry(while_op("a"))
    )
    assert cycles(program) == 49 * 32
    assert cycles(program, lambda op: 5) == 49 * 2 + 5 * 30
    ran = list(hlo.executions(program, lambda op: 5))
    assert sum(times for op, times in ran if op.name == "y" and op.cycles == 30) == 5


def test_a_conditional_outside_loops_takes_its_dearest_branch():
    choice = CHOICE.replace("branch_computations={%cheap, %dear}", "true_computation=%dear, "
                            "false_computation=%cheap")  # fmt: skip
    program = module(
        BRANCHES,
        "ENTRY %main (x: f32[8], go: pred[]) -> f32[8] {",
        "  %x = f32[8] parameter(0)",
        "  %go = pred[] parameter(1)",
        choice,
        "  ROOT %out = f32[8] copy(%chosen), " + COST % 1,
        "}",
    )
    assert cycles(program) == 31
    assert cycles(program, lambda op: 0) == 31


EXCHANGES = """
%add (a: f32[], b: f32[]) -> f32[] {
  %a = f32[] parameter(0)
  %b = f32[] parameter(1)
  ROOT %sum = f32[] add(%a, %b)
}
%hidden (x: f32[8]) -> f32[8] {
  %x = f32[8] parameter(0)
  ROOT %moved = f32[8] collective-permute(%x), source_target_pairs={{0,1},{1,0}}
}
%fused_computation.1 (x: f32[4]) -> (f32[4], u32[]) {
  %x = f32[4] parameter(0)
  %begins = f32[8] all-gather(%x), replica_groups={{0,1}}, dimensions={0}
  ROOT %kept = (f32[4], u32[]) custom-call(%begins), custom_call_target="AsyncStart"
}
%async_collective_fusion.1 (x: f32[4]) -> f32[8] {
  %x = f32[4] parameter(0)
  ROOT %goes_on = f32[8] all-gather(%x), replica_groups={{0,1}}, dimensions={0}
}
%fused_computation.2 (x: f32[4]) -> f32[8] {
  %x = f32[4] parameter(0)
  ROOT %ends = f32[8] all-gather(%x), replica_groups={{0,1}}, dimensions={0}
}
%all-reduce-scatter.3 (x: f32[4]) -> f32[1] {
  %x = f32[4] parameter(0)
  %zero = s32[] constant(0)
  %whole = f32[4] all-reduce(%x), replica_groups={{0,2,4,6},{1,3,5,7}}, to_apply=%add
  ROOT %chosen = f32[1] dynamic-slice(%whole, %zero), dynamic_slice_sizes={1}
}
ENTRY %main (x: f32[8], y: bf16[4]) -> f32[8] {
  %x = f32[8]{0:T(256)} parameter(0)
  %y = bf16[4]{0} parameter(1)
  %both = (f32[8]{0}, bf16[4]{0}) all-reduce(%x, %y), replica_groups={{0,1}}, to_apply=%add
  %begun = f32[8]{0} all-reduce-start(%x), replica_groups=mesh['a'=2,'b'=3] {'b'}, to_apply=%add
  %ended = f32[8]{0} all-reduce-done(%begun)
  %gather = (f32[8]{0}, f32[16]{0}) all-gather-start(%x), dimensions={0}
  %gathered = f32[16]{0} all-gather-done(%gather)
  %send = (f32[8]{0}, f32[8]{0}, u32[], u32[]) collective-permute-start(%x)
  %sent = f32[8]{0} collective-permute-done(%send)
  %scattered = f32[4]{0} reduce-scatter(%x), replica_groups=[1,2]<=[2], to_apply=%add
  %share = f32[1]{0} fusion(%x), kind=kCustom, calls=%all-reduce-scatter.3
  %async-collective-start.1 = (f32[4], u32[]) fusion(%x), kind=kCustom, calls=%fused_computation.1
  %beside = f32[8]{0} fusion(%x), kind=kOutput, calls=%async_collective_fusion.1
  %async-collective-done.1 = f32[8]{0} fusion(%x), kind=kCustom, calls=%fused_computation.2
  ROOT %last = f32[8]{0} fusion(%ended), kind=kLoop, calls=%hidden
}
"""


def test_exchanges_are_counted_once_with_the_bytes_that_they_give():
    program = module(EXCHANGES)
    found = hlo_findings.collectives(program, list(hlo.executions(program)))
    assert sorted(found) == [
        ("all-gather", 1, 32, 2),
        ("all-gather", 1, 64, 0),
        ("all-reduce", 1, 32, 3),
        ("all-reduce", 1, 32 + 8, 2),
        ("collective-permute", 1, 32, 0),
        ("collective-permute", 1, 32, 0),
        ("reduce-scatter", 1, 4, 4),
        ("reduce-scatter", 1, 16, 2),
    ]


@pytest.mark.parametrize(
    ("kind", "size", "sent"),
    [
        # Of 4 devices and 400 bytes: a ring of shares of 100, once around, or twice for a sum.
        ("all-reduce", 400, 600),
        ("all-gather", 400, 300),
        ("reduce-scatter", 100, 300),
        ("collective-permute", 400, 400),
    ],
)
def test_what_a_device_sends(kind, size, sent):
    assert hlo_findings.Collective(kind, 1, size, 4).sent == sent


def test_what_is_sent_is_not_guessed():
    with pytest.raises(ValueError, match="who exchanges with whom"):
        hlo_findings.Collective("all-reduce", 1, 400).sent  # noqa: B018


def test_an_exchange_in_a_loop_counts_as_often_as_it_runs():
    reduce = "  %sum = f32[8] all-reduce(%y), to_apply=%add\n"
    program = module(
        EXCHANGES.split("%hidden")[0],
        body_and_condition("a", 6, cost=1, called=reduce),
        entry(while_op("a")),
    )
    found = hlo_findings.collectives(program, list(hlo.executions(program)))
    assert found == [("all-reduce", 6, 6 * 32, 0)]


@pytest.mark.parametrize(
    "line",
    [
        "%t = ((f32[8]), token[]) infeed(%token)",
        "%t = token[] outfeed(%x, %token)",
        "%t = (f32[8], u32[], token[]) send(%x, %token), channel_id=1, is_host_transfer=true",
        "%t = token[] recv-done(%x), channel_id=1",
        '%t = f32[8] custom-call(%x), custom_call_target="xla_ffi_python_cpu_callback"',
        '%t = f32[8] custom-call(%x), custom_call_target="MoveToHost"',
    ],
)
def test_host_transfers_are_found_wherever_they_stand(line):
    program = module(
        "%unused (x: f32[8]) -> f32[8] {",
        "  %x = f32[8] parameter(0)",
        f"  {line}",
        "  ROOT %y = f32[8] copy(%x)",
        "}",
        body_and_condition("a", 2, cost=1),
        entry(while_op("a")),
    )
    assert hlo_findings.host_transfers(program) == ["t"]
    # Merely being called so in Python is none.
    named = module(
        body_and_condition("a", 2, cost=1).replace("selection/neg", "my_callback/neg"),
        entry(while_op("a")),
    )
    assert hlo_findings.host_transfers(named) == []


def test_what_has_no_estimate_is_named():
    big = "f32[1024,8]"
    program = module(
        "ENTRY %main (x: f32[1024,8]) -> f32[1024,8] {",
        f"  %x = {big} parameter(0)",
        f"  %priced = {big} negate(%x), {COST % 5}",
        f"  %sorted = {big} sort(%x), dimensions={{0}}, to_apply=%less",
        f'  %kernel = {big} custom-call(%x), custom_call_target="tpu_custom_call"',
        f"  %begun = ({big}{{1,0:S(1)}}, {big}, u32[]) copy-start(%x)",
        f"  %ended = {big} copy-done(%begun)",
        f"  %part = (({big}), f32[512,8], s32[]) slice-start(%x), slice={{[0:512], [0:8]}}",
        "  %parted = f32[512,8] slice-done(%part)",
        "  %one = s32[] constant(1)",
        "  %two = s32[] add(%one, %one)",
        f"  ROOT %turned = {big} reverse(%kernel), dimensions={{0}}, {COST % (2**63 - 1)}",
        "}",
    )
    assert hlo_findings.without_estimate(program, list(hlo.executions(program))) == [
        ("sort", 1, 32768),
        ("custom-call tpu_custom_call", 1, 32768),
        ("copy-start", 1, 32768),
        ("reverse", 1, 32768),
        ("slice-start", 1, 16384),
        ("small", 1, 4),
    ]


def test_an_update_in_place_counts_as_what_is_new():
    program = module(
        "%put (all: f32[4096,8], x: f32[512,8], i: s32[]) -> f32[4096,8] {",
        "  %all = f32[4096,8] parameter(0)",
        "  %x = f32[512,8] parameter(1)",
        "  %i = s32[] parameter(2)",
        "  ROOT %in = f32[4096,8] dynamic-update-slice(%all, %x, %i, %i)",
        "}",
        "ENTRY %main (all: f32[4096,8], x: f32[1024,8], i: s32[]) -> f32[4096,8] {",
        "  %all = f32[4096,8] parameter(0)",
        "  %x = f32[1024,8] parameter(1)",
        "  %part = f32[512,8] parameter(2)",
        "  %i = s32[] parameter(3)",
        "  %first = f32[4096,8] dynamic-update-slice(%all, %x, %i, %i)",
        "  ROOT %second = f32[4096,8] fusion(%first, %part, %i), kind=kLoop, calls=%put",
        "}",
    )
    ran = list(hlo.executions(program))
    assert hlo_findings.without_estimate(program, ran) == [
        ("dynamic-update-slice", 1, 32768), ("fusion", 1, 16384)
    ]  # fmt: skip
    assert hlo_findings.gathers(program, ran) == (2, 0, 32768 + 16384)


def test_gathers_are_found_inside_fusions():
    program = module(
        "%rows (x: f32[64,8], i: s32[4]) -> f32[4,8] {",
        "  %x = f32[64,8] parameter(0)",
        "  %i = s32[4] parameter(1)",
        "  ROOT %taken = f32[4,8] gather(%x, %i), offset_dims={1}",
        "}",
        "ENTRY %main (x: f32[64,8], i: s32[4]) -> f32[4,8] {",
        "  %x = f32[64,8] parameter(0)",
        "  %i = s32[4] parameter(1)",
        f"  %same = f32[64,8] negate(%x), {COST % 50}",
        f"  ROOT %fused = f32[4,8] fusion(%same, %i), kind=kLoop, calls=%rows, {COST % 7}",
        "}",
    )
    assert hlo_findings.gathers(program, list(hlo.executions(program))) == (1, 7, 128)
