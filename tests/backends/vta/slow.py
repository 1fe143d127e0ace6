"""The semantics of VTA once more: Python integers, one value at a time, in program order."""

from sqcompile.backends.vta.hardware import Memory


def run(hardware, program, dram):
    """DRAM after a program whose tokens are right."""
    machine = Slow(hardware, bytearray(dram))
    for instruction in program:
        getattr(machine, type(instruction).__name__.lower())(instruction)
    return bytes(machine.dram)


def signed(value, bits):
    value &= (1 << bits) - 1
    return value - (1 << bits) if value >> (bits - 1) else value


class Slow:
    def __init__(self, hardware, dram):
        self.hardware, self.dram = hardware, dram
        self.pads = {memory: {} for memory in Memory}

    def values(self, memory):
        """Values of a tile."""
        batch, block = self.hardware.batch, self.hardware.block
        return {Memory.UOP: 1, Memory.WGT: block * block}.get(memory, batch * block)

    def value_at(self, memory, tile, number):
        """Value `number` of a tile in DRAM: its bits lie one after the other, lowest first."""
        bits = self.hardware.width(memory)
        first = (tile * self.values(memory) + number) * bits
        word = int.from_bytes(self.dram[first // 8 : first // 8 + 5], "little")
        return signed(word >> first % 8, bits)

    def load(self, one):
        count = self.values(one.memory)
        place = one.sram_base
        for y in range(-one.y_pad_0, one.y_size + one.y_pad_1):
            for x in range(-one.x_pad_0, one.x_size + one.x_pad_1):
                inside = 0 <= y < one.y_size and 0 <= x < one.x_size
                tile = one.dram_base + y * one.x_stride + x
                self.pads[one.memory][place] = [
                    self.value_at(one.memory, tile, number) if inside else 0
                    for number in range(count)
                ]
                place += 1

    def store(self, one):
        bits = self.hardware.width(Memory.OUT)
        count = self.values(Memory.OUT)
        for y in range(one.y_size):
            for x in range(one.x_size):
                tile = self.pads[Memory.OUT][one.sram_base + y * one.x_size + x]
                packed = sum((value & (1 << bits) - 1) << i * bits for i, value in enumerate(tile))
                size = count * bits // 8
                start = (one.dram_base + y * one.x_stride + x) * size
                self.dram[start : start + size] = packed.to_bytes(size, "little")

    def indices(self, one):
        acc, inp, wgt = (self.hardware.log_depth(m) for m in (Memory.ACC, Memory.INP, Memory.WGT))
        widths = (acc, max(acc, inp), wgt)
        for outer in range(one.iter_out):
            for inner in range(one.iter_in):
                for place in range(one.uop_bgn, one.uop_end):
                    word = self.pads[Memory.UOP][place][0]
                    found = []
                    for name, width in zip(("dst", "src", "wgt"), widths, strict=True):
                        steps = [getattr(one, f"{name}_{loop}", 0) for loop in ("out", "in")]
                        base = word & (1 << width) - 1
                        found.append(base + outer * steps[0] + inner * steps[1])
                        word >>= width
                    yield found

    def gemm(self, one):
        block = self.hardware.block
        for dst, src, wgt in self.indices(one):
            acc = self.pads[Memory.ACC].setdefault(dst, [0] * self.values(Memory.ACC))
            for number in range(len(acc)):
                row, column = divmod(number, block)
                total = acc[number]
                for k in range(block):
                    x = self.pads[Memory.INP][src][row * block + k]
                    total += x * self.pads[Memory.WGT][wgt][column * block + k]
                acc[number] = signed(total, 32)
            self.pads[Memory.OUT][dst] = list(acc)

    def alu(self, one):
        for dst, src, _ in self.indices(one):
            acc = self.pads[Memory.ACC][dst]
            operand = [one.imm] * len(acc) if one.use_imm else list(self.pads[Memory.ACC][src])
            for number, (x, y) in enumerate(zip(list(acc), operand, strict=True)):
                result = {
                    "MIN": lambda x, y: min(x, y),
                    "MAX": lambda x, y: max(x, y),
                    "ADD": lambda x, y: x + y,
                    "SHR": lambda x, y: x >> y if y >= 0 else x << -y,
                    "MUL": lambda x, y: x * y,
                }[one.alu_opcode.name](x, y)
                acc[number] = signed(result, 32)
            self.pads[Memory.OUT][dst] = list(acc)

    def finish(self, one):
        pass
