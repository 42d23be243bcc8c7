"""Words of the layout `planes` as operands of matrix instructions, inside Triton kernels.

The idea that belongs here: a plane of codes becomes numbers in a few instructions for each pair of
them, none of which converts integers. Each way is written twice: in Triton alone, which also runs
in the interpreter, and for 16-bit floats as instructions of PTX (`ASM`), which treat two numbers
at once. How the words are laid out is said in `layouts_gpu`. Imported only where Triton is.

A number here is the code less 2^(bits-1), or what a table has for the code.
"""

from typing import no_type_check

import triton  # pyright: ignore[reportMissingImports]
import triton.language as tl  # pyright: ignore[reportMissingImports]


@no_type_check
@triton.jit
def halves(words):
    """The low and the high 16 bits of words: planes 0 up to half of them, and the others."""
    return words.to(tl.int16), (words >> 16).to(tl.int16)


@no_type_check
@triton.jit
def _codes(low, high, third, J: tl.constexpr, BITS: tl.constexpr):
    STORED: tl.constexpr = 2 if BITS == 3 else BITS
    HALF: tl.constexpr = 16 // STORED
    word = (low if J < HALF else high).to(tl.int32)
    codes = (word >> (STORED * (J % HALF))) & ((1 << STORED) - 1)
    if BITS == 3:
        codes = codes | (((third.to(tl.int32) >> J) & 1) << 2)
    return codes


@no_type_check
@triton.jit
def plane(
    low,  # (columns, rows) int16, of `halves`
    high,
    third,  # for 3 bits: bit J is the third one of plane J; else anything
    table,  # pointer to what codes stand for; read where TABLE
    J: tl.constexpr,
    BITS: tl.constexpr,
    TABLE: tl.constexpr,
    COMPUTE: tl.constexpr,
    ASM: tl.constexpr,
):
    """The numbers of plane J, (columns, rows), in COMPUTE."""
    if ASM and not TABLE:
        bits = _by_instructions(low, high, third, J, BITS, COMPUTE)
        return bits.to(COMPUTE, bitcast=True)
    codes = _codes(low, high, third, J, BITS)
    if TABLE:
        return tl.load(table + codes).to(COMPUTE)
    # 2^23 + q has q as its last bits
    center: tl.constexpr = float((1 << 23) + (1 << (BITS - 1)))
    return ((codes | 0x4B000000).to(tl.float32, bitcast=True) - center).to(COMPUTE)


@no_type_check
@triton.jit
def _by_instructions(low, high, third, J: tl.constexpr, BITS: tl.constexpr, COMPUTE: tl.constexpr):
    # 128 + q (bfloat16) and 1024 + q (float16) have q as their last bits: the first constant sets
    # the others, the second one (from which q comes out exactly) is what has to be subtracted.
    STORED: tl.constexpr = 2 if BITS == 3 else BITS
    HALF: tl.constexpr = 16 // STORED
    word = low if J < HALF else high
    shift: tl.constexpr = STORED * (J % HALF)
    mask: tl.constexpr = ((1 << STORED) - 1) * 0x00010001
    bf16: tl.constexpr = COMPUTE == tl.bfloat16
    one: tl.constexpr = 0x43004300 if bf16 else 0x64006400
    center: tl.constexpr = (1 << (BITS - 1)) * 0x00010001
    minus: tl.constexpr = (one + center) ^ 0x80008000
    unit: tl.constexpr = 0x3F803F80 if bf16 else 0x3C003C00
    kind: tl.constexpr = "bf16x2" if bf16 else "f16x2"
    if BITS == 3:
        to_third: tl.constexpr = f"shr.u32 b, $2, {J - 2}" if J >= 2 else f"shl.b32 b, $2, {2 - J}"
        both: tl.constexpr = f"""{{ .reg .b32 a, b, u, v; mov.b32 u, {unit}; mov.b32 v, {minus};
            shr.u32 a, $1, {shift}; lop3.b32 a, a, {mask}, {one}, 0xEA;
            {to_third}; lop3.b32 a, b, 0x00040004, a, 0xEA; fma.rn.{kind} $0, a, u, v; }}"""
        return tl.inline_asm_elementwise(both, "=r,r,r", [word, third], tl.int16, True, 2)
    if BITS == 8 and bf16:
        # 128 + (q & 127) less 128, or less 256 where the eighth bit is not set: q - 128
        eight: tl.constexpr = f"""{{ .reg .b32 a, b, u; mov.b32 u, 0xBF80BF80;
            shr.u32 a, $1, {shift}; lop3.b32 b, a, 0x00800080, 0x43004300, 0xAE;
            lop3.b32 a, a, 0x007F007F, 0x43004300, 0xEA;
            fma.rn.bf16x2 $0, b, u, a; }}"""
        return tl.inline_asm_elementwise(eight, "=r,r", [word], tl.int16, True, 2)
    asm: tl.constexpr = f"""{{ .reg .b32 a, u, v; mov.b32 u, {unit}; mov.b32 v, {minus};
        shr.u32 a, $1, {shift}; lop3.b32 a, a, {mask}, {one}, 0xEA;
        fma.rn.{kind} $0, a, u, v; }}"""
    return tl.inline_asm_elementwise(asm, "=r,r", [word], tl.int16, True, 2)


@no_type_check
@triton.jit
def entries(table):
    """The bytes of a table of 16 numbers of 16 bits as words: four of low bytes, four of high."""
    low = tl.load(table), tl.load(table + 1), tl.load(table + 2), tl.load(table + 3)
    high = tl.load(table + 4), tl.load(table + 5), tl.load(table + 6), tl.load(table + 7)
    return low, high


@no_type_check
@triton.jit
def look_up(half, low, high):
    """What a table has for the four planes of a half: 16 bits each, as int16, by instructions."""
    # The low three bits of a code find a byte in either half of the table, the fourth bit chooses.
    # An operand of 32 bits comes twice, for either number: $5 and $6 are the same.
    asm: tl.constexpr = """{ .reg .b32 s, c, l, h, m, p, q, r, t;
        and.b32 s, $4, 0x77777777; shr.u32 c, $4, 1; lop3.b32 c, c, 0x44444444, 0x32103210, 0xEA;
        prmt.b32 l, $6, $8, s; prmt.b32 h, $10, $12, s; prmt.b32 l, l, h, c;
        prmt.b32 m, $14, $16, s; prmt.b32 h, $18, $20, s; prmt.b32 m, m, h, c;
        prmt.b32 p, l, m, 0x5140; prmt.b32 q, l, m, 0x7362;
        shr.u32 s, s, 16; shr.u32 c, c, 16;
        prmt.b32 l, $6, $8, s; prmt.b32 h, $10, $12, s; prmt.b32 l, l, h, c;
        prmt.b32 m, $14, $16, s; prmt.b32 h, $18, $20, s; prmt.b32 m, m, h, c;
        prmt.b32 r, l, m, 0x5140; prmt.b32 t, l, m, 0x7362;
        prmt.b32 $0, p, r, 0x5410; prmt.b32 $1, p, r, 0x7632;
        prmt.b32 $2, q, t, 0x5410; prmt.b32 $3, q, t, 0x7632; }"""
    return tl.inline_asm_elementwise(
        asm,
        "=r,=r,=r,=r" + ",r" * 17,
        [half, low[0], low[1], low[2], low[3], high[0], high[1], high[2], high[3]],
        (tl.int16, tl.int16, tl.int16, tl.int16),
        True,
        2,
    )


@no_type_check
@triton.jit
def plane_of_bytes(
    word,  # (columns, rows) int32
    third,  # for 3 bits: bit J is the third one of plane J; else anything
    table,  # pointer to 2^BITS int8; read where TABLE, and of 4 bits with ASM in `low_bytes`
    low_bytes,
    J: tl.constexpr,
    BITS: tl.constexpr,
    TABLE: tl.constexpr,
    ASM: tl.constexpr,
):
    """The numbers of plane J as int8, (columns, rows): two instructions a number at most."""
    STORED: tl.constexpr = 2 if BITS == 3 else BITS
    center: tl.constexpr = 1 << (BITS - 1)
    if not ASM or (TABLE and BITS != 4):
        codes = (word >> (STORED * J)) & ((1 << STORED) - 1)
        if BITS == 3:
            codes = codes | (((third >> J) & 1) << 2)
        if TABLE:
            return tl.load(table + codes)
        return (codes - center).to(tl.int8)
    codes = _byte(word, STORED * J // 8)
    shift: tl.constexpr = STORED * J % 8
    if TABLE:
        find: tl.constexpr = f"""{{ .reg .b32 a, c, l, h;
            shr.u32 a, $1, {shift}; and.b32 a, a, 0x0F0F0F0F; shr.u32 c, a, 4; or.b32 a, a, c;
            prmt.b32 a, a, 0, 0x4420; shr.u32 c, a, 1; and.b32 a, a, 0x7777;
            lop3.b32 c, c, 0x4444, 0x3210, 0xEA;
            prmt.b32 l, $5, $9, a; prmt.b32 h, $13, $17, a; prmt.b32 $0, l, h, c; }}"""
        return tl.inline_asm_elementwise(
            find,
            "=r" + ",r" * 17,
            [codes, low_bytes[0], low_bytes[1], low_bytes[2], low_bytes[3]],
            tl.int8,
            True,
            4,
        )
    mask: tl.constexpr = 0x01010101 * ((1 << STORED) - 1)
    up: tl.constexpr = 0x01010101 * (0x80 - center)  # q + 128 - center has no carry into its
    if BITS == 8:  # neighbour; without its highest bit it is the difference
        flip: tl.constexpr = "xor.b32 $0, $1, 0x80808080;"
        return tl.inline_asm_elementwise(flip, "=r,r", [codes], tl.int8, True, 4)
    if BITS == 3:
        highest = _byte(third, J // 8)
        both: tl.constexpr = f"""{{ .reg .b32 a, b;
            shr.u32 a, $1, {shift}; and.b32 a, a, {mask}; shr.u32 b, $2, {J % 8};
            and.b32 b, b, 0x01010101; shl.b32 b, b, 2; or.b32 a, a, b;
            add.u32 a, a, {up}; xor.b32 $0, a, 0x80808080; }}"""
        return tl.inline_asm_elementwise(both, "=r,r,r", [codes, highest], tl.int8, True, 4)
    asm: tl.constexpr = f"""{{ .reg .b32 a; shr.u32 a, $1, {shift}; and.b32 a, a, {mask};
        add.u32 a, a, {up}; xor.b32 $0, a, 0x80808080; }}"""
    return tl.inline_asm_elementwise(asm, "=r,r", [codes], tl.int8, True, 4)


@no_type_check
@triton.jit
def _byte(word, B: tl.constexpr):
    asm: tl.constexpr = f"""{{ .reg .b32 a, b; prmt.b32 a, $1, $2, {0x40 + 0x11 * B};
        prmt.b32 b, $3, $4, {0x40 + 0x11 * B}; prmt.b32 $0, a, b, 0x5410; }}"""
    return tl.inline_asm_elementwise(asm, "=r,r,r,r,r", [word], tl.int8, True, 4)
