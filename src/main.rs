//! The `fewvit` program.

/// Training allocates and frees the same large buffers in every step; the system's allocator gives
/// them back to the kernel each time.
#[global_allocator]
static ALLOCATOR: mimalloc::MiMalloc = mimalloc::MiMalloc;

fn main() -> std::process::ExitCode {
    fewvit::cli::main().into()
}
