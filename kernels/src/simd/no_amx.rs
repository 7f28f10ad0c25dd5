//! The same as `amx` where no processor has tiles: nothing here is ever reached.

use super::PANEL;

pub(crate) const TILE_ROWS: usize = 16;

#[derive(Clone, Copy, Default)]
pub(crate) struct Square(pub [[f32; PANEL]; 2 * TILE_ROWS]);

/// There is no value of this type.
pub(crate) enum Tiles {}

impl Tiles {
    pub unsafe fn configure(_rows: usize) -> Self {
        unreachable!("no level has tiles")
    }

    pub unsafe fn multiply(
        &self,
        _a: [*const f32; 2],
        _a_stride: usize,
        _b: *const f32,
        _steps: usize,
        _c: &mut Square,
        _add: bool,
    ) {
        match *self {}
    }
}

pub(crate) unsafe fn products(_rounds: usize) -> usize {
    unreachable!("no level has tiles")
}
