"""What a call of an external function does, in calls of its own: transfers and a program."""

import json
from collections.abc import Mapping, Sequence
from typing import Any

import tvm
from tvm import relax
from tvm.relax.expr_functor import PyExprMutator, mutator

from sqcompile.backends.vta.graph.fused import Fusions
from sqcompile.backends.vta.graph.offload import Offload
from sqcompile.backends.vta.graph.regions import Region, Source, Step
from sqcompile.runtime.vta import ADD, EXECUTE, LENGTHS, PACK, UNPACK


@mutator
class Transfers(PyExprMutator):
    """Writes a function anew in which a call of an external function, by symbol in `regions`, is
    three for each of its programs: PACK gives an image of DRAM with the operands, EXECUTE what a
    program makes of it, UNPACK the result, or two. Where the program is written in the run, LENGTHS
    says first for which lengths of groups, and the others take that too. A product in parts has
    those calls for each of them, and ADD their sum. `programs` are those that it called."""

    def __init__(
        self,
        module: tvm.IRModule,
        regions: Mapping[str, Region],
        offloads: Mapping[str, Sequence[Offload]],
        fusions: Fusions,
    ) -> None:
        super().__init__(module)
        self.regions, self.offloads, self.fusions = regions, offloads, fusions
        self.programs: dict[str, list[Offload]] = {}

    def visit_call_(self, call: Any) -> Any:
        """Write out a call of a region."""
        call = self.visit_expr_post_order(call)
        if call.op != tvm.ir.Op.get("relax.call_dps_packed"):
            return call
        region = self.regions.get(str(call.args[0].global_symbol))
        if region is None:
            return call
        given = list(call.args[1].fields)
        values: list[Any] = []

        def value(source: Source) -> Any:
            return values[source.number] if source.is_step else given[source.number]

        for number, step in enumerate(region.steps):
            if number < len(values):  # the second result of the step before
                continue
            operands = [value(one) for one in step.operands]
            sums = self._sums(region.steps, number)
            if sums is None:
                last = self._computed(step, operands)
                if region.results == (number,) and not region.several:
                    return last
                values.append(self._emit(last))
            else:
                (offload,) = self._called(step.kernels + sums.kernels)
                both = self._emit(self._part(offload, operands, [step.result, sums.result]))
                values += [self._emit(relax.TupleGetItem(both, index)) for index in range(2)]
        left = [values[number] for number in region.results]
        return relax.Tuple(left) if region.several else left[0]

    def _sums(self, steps: Sequence[Step], number: int) -> Step | None:
        """The next step, where it is in this one's program."""
        if number + 1 == len(steps) or len(steps[number].kernels) > 1:
            return None
        step, reader = steps[number], steps[number + 1]
        reads = reader.operands == (Source(True, number),)
        return reader if reads and self.fusions.of(*step.kernels, *reader.kernels) else None

    def _called(self, kernels: tuple[str, ...]) -> list[Offload]:
        """The programs of a kernel, or of two."""
        if len(kernels) == 1:
            found = list(self.offloads[kernels[0]])
        else:
            made = self.fusions.of(*kernels)
            assert made is not None
            found = [made]
        self.programs["+".join(kernels)] = found
        return found

    def _computed(self, step: Step, operands: list[Any]) -> Any:
        """The last of the calls for a step."""
        parts = [self._part(one, operands, step.result) for one in self._called(step.kernels)]
        if len(parts) == 1:
            return parts[0]
        return relax.call_dps_packed(ADD, [self._emit(part) for part in parts], step.result)

    def _part(self, offload: Offload, operands: list[Any], result: Any) -> Any:
        """The last of the calls for a program: UNPACK, of a result's type or several."""
        identity, cut = (tvm.ir.StringImm(one) for one in (offload.identity, offload.cut))
        if offload.cut:
            result = relax.TensorType(result.shape, "int32")
        if offload.rows:
            (whole,) = operands
            operands = [self._emit(relax.op.reshape(whole, offload.rows))]
        lengths = self._lengths(offload, identity, operands)
        dram = relax.TensorType((offload.dram,), "uint8")
        before = self._emit_call(PACK, [identity, cut, *operands, *lengths], dram)
        after = self._emit_call(EXECUTE, [identity, before, *lengths], dram)
        return relax.call_dps_packed(UNPACK, [identity, cut, after, *operands, *lengths], result)

    def _lengths(self, offload: Offload, identity: Any, operands: list[Any]) -> list[Any]:
        """The lengths of groups that the program is written for, if it is."""
        if not offload.written_for:
            return []
        of_exponent = json.dumps(json.loads(offload.cut)[2:]) if offload.cut else ""
        kind = relax.TensorType((offload.written_for,), "int32")
        return [
            self._emit_call(LENGTHS, [identity, tvm.ir.StringImm(of_exponent), operands[2]], kind)
        ]

    def _emit_call(self, symbol: str, arguments: list[Any], result: Any) -> Any:
        return self._emit(relax.call_dps_packed(symbol, arguments, result))

    def _emit(self, value: Any) -> Any:
        return self.builder_.emit(value)
