//! What every kernel asks of its arguments.

/// Panics with both numbers unless `x` holds `expected` values.
#[track_caller]
pub(crate) fn check_len(name: &str, x: &[f32], expected: usize) {
    assert!(x.len() == expected, "{name}: {} values where {expected} are needed", x.len());
}
