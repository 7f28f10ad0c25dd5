//! Matrix tiles: AMX, where one instruction multiplies 16 x 32 by 32 x 16 numbers of bf16.
//!
//! A product keeps 2 x 2 tiles of the output in registers: two of the left factor and two of the
//! right one are loaded for every four products, half the time that those take.
//!
//! The compiler has no stable intrinsics for tiles and never uses the registers by itself, so the
//! instructions are written out, in blocks that leave nothing in a register for another block to
//! find but zeros and the configuration.

use super::{PANEL, TILE_PAIRS};
use std::arch::asm;
use std::arch::x86_64::__cpuid_count;
use std::marker::PhantomData;

/// Most rows of a tile.
pub(crate) const TILE_ROWS: usize = 16;
/// Bytes of a full row of a tile.
const ROW_BYTES: usize = 64;

/// Bytes of a panel in a step, and of the upper half of a square.
const STEP_BYTES: usize = 2 * TILE_ROWS * ROW_BYTES;
/// Steps of a product by which a panel is fetched from the second-level cache before it is loaded.
const AHEAD: usize = 2;

/// Fetches some of the 32 lines that a step loads of a panel. They are spread over the step: all
/// at once they would be in the way of its loads.
macro_rules! fetch {
    ($($line:literal)*) => {
        concat!($("prefetcht0 [{b} + {ahead} + 64 * ", $line, "]\n"),*)
    };
}

/// Where products of tiles go: two tiles below each other, two beside each other.
#[derive(Clone, Copy, Default)]
#[repr(C, align(64))]
pub(crate) struct Square(pub [[f32; PANEL]; 2 * TILE_ROWS]);

/// Whether the processor has tiles of bf16 and the system lets this process use them.
pub(crate) fn is_present() -> bool {
    let features = __cpuid_count(7, 0).edx;
    let (bf16, tiles) = (features >> 22 & 1, features >> 24 & 1);
    bf16 == 1 && tiles == 1 && is_permitted()
}

/// Asks Linux for the 8 KiB of registers, which it saves for those processes only that want them.
#[cfg(target_os = "linux")]
fn is_permitted() -> bool {
    const ARCH_PRCTL: isize = 158;
    const ARCH_REQ_XCOMP_PERM: usize = 0x1023;
    const TILE_DATA: usize = 18;
    let mut result = ARCH_PRCTL;
    // SAFETY: this call takes two numbers, touches no memory and returns an error where it is unknown.
    unsafe {
        asm!(
            "syscall",
            inlateout("rax") result,
            in("rdi") ARCH_REQ_XCOMP_PERM,
            in("rsi") TILE_DATA,
            lateout("rcx") _,
            lateout("r11") _,
            options(nostack),
        );
    }
    result == 0
}

/// Other systems have ways of their own, which nobody has tried.
#[cfg(not(target_os = "linux"))]
fn is_permitted() -> bool {
    false
}

/// What LDTILECFG reads.
#[repr(C, align(64))]
struct Configuration {
    palette: u8,
    start_row: u8,
    reserved: [u8; 14],
    row_bytes: [u16; 16],
    rows: [u8; 16],
}

/// The tile registers of this thread, in use until this is dropped.
pub(crate) struct Tiles {
    /// Not for other threads.
    thread: PhantomData<*const ()>,
}

impl Tiles {
    /// Tiles of the output and of the left factor have `rows`, at most [`TILE_ROWS`].
    ///
    /// # Safety
    /// Only where [`is_present`], and while this thread has no others: dropping those would end these.
    pub unsafe fn configure(rows: usize) -> Self {
        assert!((1..=TILE_ROWS).contains(&rows), "a tile of {rows} rows");
        let mut configuration = Configuration {
            palette: 1,
            start_row: 0,
            reserved: [0; 14],
            row_bytes: [0; 16],
            rows: [0; 16],
        };
        // 0 to 3: the output; 4 and 5: the left factor; 6 and 7: the right one.
        configuration.row_bytes[..8].fill(ROW_BYTES as u16);
        configuration.rows[..6].fill(rows as u8);
        configuration.rows[6..8].fill(TILE_PAIRS as u8);
        // SAFETY: the caller vouches for the instruction, which reads 64 bytes.
        unsafe { asm!("ldtilecfg [{}]", in(reg) &configuration, options(nostack, readonly)) };
        Self { thread: PhantomData }
    }

    /// The products of two tiles of rows, which begin at `a` and lie `a_stride` pairs apart, and the
    /// rows `b` of a panel, with `steps` times [`TILE_PAIRS`] pairs each, in place of `c` or, with
    /// `add`, added to it. The second tile of rows goes to rows [`TILE_ROWS`] and on of `c`.
    ///
    /// # Safety
    /// As many pairs in each of the configured rows, and as many rows of the panel, must be readable;
    /// `steps` is not zero.
    #[inline(always)]
    pub unsafe fn multiply(
        &self,
        a: [*const f32; 2],
        a_stride: usize,
        b: *const f32,
        steps: usize,
        c: &mut Square,
        add: bool,
    ) {
        debug_assert!(steps > 0, "nothing to multiply");
        // SAFETY: `self` proves that tiles are configured; the caller vouches for the factors, and a
        // square has room for four full tiles.
        unsafe {
            asm!(
                "test {add}, {add}",
                "jnz 3f",
                "tilezero tmm0",
                "tilezero tmm1",
                "tilezero tmm2",
                "tilezero tmm3",
                "jmp 2f",
                "3:",
                "tileloadd tmm0, [{c} + {b_stride}*1]",
                "tileloadd tmm1, [{c} + {b_stride}*1 + {row_bytes}]",
                "tileloadd tmm2, [{c} + {b_stride}*1 + {step_bytes}]",
                "tileloadd tmm3, [{c} + {b_stride}*1 + {step_bytes} + {row_bytes}]",
                "2:",
                "tileloadd tmm4, [{a0} + {a_stride}*1]",
                fetch!(0 1 2 3),
                "tileloadd tmm6, [{b} + {b_stride}*1]",
                fetch!(4 5 6 7),
                "tileloadd tmm7, [{b} + {b_stride}*1 + {row_bytes}]",
                fetch!(8 9 10 11),
                "tdpbf16ps tmm0, tmm4, tmm6",
                fetch!(12 13 14 15),
                "tileloadd tmm5, [{a1} + {a_stride}*1]",
                fetch!(16 17 18 19),
                "tdpbf16ps tmm1, tmm4, tmm7",
                fetch!(20 21 22 23),
                "tdpbf16ps tmm2, tmm5, tmm6",
                fetch!(24 25 26 27),
                "tdpbf16ps tmm3, tmm5, tmm7",
                fetch!(28 29 30 31),
                "add {a0}, {row_bytes}",
                "add {a1}, {row_bytes}",
                "add {b}, {step_bytes}",
                "dec {steps}",
                "jnz 2b",
                "tilestored [{c} + {b_stride}*1], tmm0",
                "tilestored [{c} + {b_stride}*1 + {row_bytes}], tmm1",
                "tilestored [{c} + {b_stride}*1 + {step_bytes}], tmm2",
                "tilestored [{c} + {b_stride}*1 + {step_bytes} + {row_bytes}], tmm3",
                a0 = inout(reg) a[0] => _,
                a1 = inout(reg) a[1] => _,
                a_stride = in(reg) a_stride * size_of::<f32>(),
                b = inout(reg) b => _,
                c = in(reg) c,
                b_stride = in(reg) 2 * ROW_BYTES,
                steps = inout(reg) steps => _,
                add = in(reg) usize::from(add),
                ahead = const AHEAD * STEP_BYTES,
                row_bytes = const ROW_BYTES,
                step_bytes = const STEP_BYTES,
                out("tmm0") _, out("tmm1") _, out("tmm2") _, out("tmm3") _,
                out("tmm4") _, out("tmm5") _, out("tmm6") _, out("tmm7") _,
                options(nostack),
            );
        }
    }
}

impl Drop for Tiles {
    fn drop(&mut self) {
        // SAFETY: tiles exist, or there would be no value to drop.
        unsafe { asm!("tilerelease", options(nostack, nomem)) };
    }
}

/// Products of full tiles, on registers alone: `rounds` times four. Returns the operations.
///
/// # Safety
/// Only where [`is_present`].
pub(crate) unsafe fn products(rounds: usize) -> usize {
    // SAFETY: the caller vouches for the instructions.
    let tiles = unsafe { Tiles::configure(TILE_ROWS) };
    // SAFETY: as above; no memory is touched, and `rounds` is not zero.
    unsafe {
        asm!(
            "tilezero tmm0", "tilezero tmm1", "tilezero tmm2", "tilezero tmm3",
            "tilezero tmm4", "tilezero tmm5", "tilezero tmm6", "tilezero tmm7",
            "2:",
            "tdpbf16ps tmm0, tmm4, tmm6",
            "tdpbf16ps tmm1, tmm4, tmm7",
            "tdpbf16ps tmm2, tmm5, tmm6",
            "tdpbf16ps tmm3, tmm5, tmm7",
            "dec {rounds}",
            "jnz 2b",
            rounds = inout(reg) rounds.max(1) => _,
            out("tmm0") _, out("tmm1") _, out("tmm2") _, out("tmm3") _,
            out("tmm4") _, out("tmm5") _, out("tmm6") _, out("tmm7") _,
            options(nostack, nomem),
        );
    }
    drop(tiles);
    // Two for each of 16 x 16 sums of 16 pairs, in four tiles.
    rounds.max(1) * 4 * 2 * TILE_ROWS * (ROW_BYTES / size_of::<f32>()) * 2 * TILE_PAIRS
}
