"""Special registers that have a value here. Clocks and the number of the SM have none."""

SPECIALS = {
    **{
        f"%{name}.{axis}": f"t.{name}.{axis}"
        for name in ("tid", "ntid", "ctaid", "nctaid")
        for axis in "xyz"
    },
    "%laneid": "t.lane",
    "%warpid": "t.warp",
    "%nwarpid": "t.warps",
    "%dynamic_smem_size": "t.dynamic_size",
    "%total_smem_size": "t.shared_size",
    "%lanemask_eq": "(1u << t.lane)",
    "%lanemask_lt": "((1u << t.lane) - 1)",
    "%lanemask_le": "((2u << t.lane) - 1)",
    "%lanemask_gt": "~((2u << t.lane) - 1)",
    "%lanemask_ge": "~((1u << t.lane) - 1)",
}
"""Their C++, in a kernel."""
