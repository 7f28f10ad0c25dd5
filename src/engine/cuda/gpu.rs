//! A card: memory, kernels and matrix products in one stream.
//!
//! All `unsafe` of the engine is here and in [`products`]. Device memory is not memory of this process: whatever a
//! kernel does with it, the worst is wrong numbers or an error of the driver. What has to be true of the
//! host's side is said at each call.

mod products;
mod tuning;

use std::collections::{BTreeMap, HashMap};
use std::ffi::{CString, c_void};
use std::ops::Range;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use bytemuck::Pod;
use cudarc::cublaslt::{result as lt, sys as blas};
use cudarc::driver::{DriverError, result as cu, sys};
use cudarc::nvrtc::{CompileOptions, compile_ptx_with_opts};

pub use products::Product;
use products::{Prepared, Shape};

use super::libraries;
use crate::engine::device::{Card, failed};
use crate::error::{Error, Result};

/// Bytes that a matrix product may use besides its operands.
pub const WORKSPACE: usize = 64 << 20;
/// Values that all parts of memory begin at a multiple of: what matrix products like best.
pub const ALIGNMENT: usize = 64;
/// Threads of a block of the kernels that work value by value.
const THREADS: u32 = 256;

/// Whether the driver, the run-time compiler and the matrix products can be loaded.
pub fn libraries() -> [bool; 3] {
    // SAFETY: loading them runs NVIDIA's own initialisers, which have no conditions.
    unsafe {
        [sys::is_culib_present(), cudarc::nvrtc::sys::is_culib_present(), blas::is_culib_present()]
    }
}

/// Versions of the driver and of cuBLASLt, as they number themselves.
fn versions() -> Option<[usize; 2]> {
    libraries().iter().all(|found| *found).then_some(())?;
    let mut driver = 0;
    // SAFETY: both libraries are there, and the number has a place.
    let products = unsafe {
        sys::cuDriverGetVersion(&mut driver).result().ok()?;
        blas::cublasLtGetVersion()
    };
    Some([driver as usize, products])
}

/// A card with the versions of its driver and of the library of matrix products.
pub fn on(card: &Card) -> Option<String> {
    let [driver, products] = versions()?;
    Some(format!("{}, driver {driver}, cuBLASLt {products}", card.name))
}

/// The cards of this machine in the driver's order, which is that of `--device cuda:i`.
///
/// # Errors
/// The driver or one of CUDA's libraries is missing, or the driver knows no card.
pub fn cards() -> Result<Vec<Card>> {
    libraries::present()?;
    cu::init().map_err(libraries::no_card)?;
    let count = cu::device::get_count().map_err(libraries::no_card)?;
    let cards: Vec<Card> = (0..count).map(describe).collect::<Result<_>>()?;
    match cards.is_empty() {
        true => Err(libraries::none_found()),
        false => Ok(cards),
    }
}

fn describe(index: i32) -> Result<Card> {
    let ask = || -> std::result::Result<Card, DriverError> {
        use sys::CUdevice_attribute as A;
        let device = cu::device::get(index)?;
        // SAFETY: the driver has just named this device.
        let of = |attribute| unsafe { cu::device::get_attribute(device, attribute) };
        let major = of(A::CU_DEVICE_ATTRIBUTE_COMPUTE_CAPABILITY_MAJOR)?;
        let minor = of(A::CU_DEVICE_ATTRIBUTE_COMPUTE_CAPABILITY_MINOR)?;
        // SAFETY: as above.
        let memory = unsafe { cu::device::total_mem(device) }? as u64;
        Ok(Card { name: cu::device::get_name(device)?, memory, capability: [major, minor] })
    };
    ask().map_err(|e| broken("asking for cards", e))
}

/// Sources of kernels.
pub struct Kernels {
    /// Of those whose products and sums may be rounded once.
    pub fused: &'static str,
    /// Of those that round as the CPU does.
    pub exact: &'static str,
}

/// A card in use.
pub struct Gpu {
    /// What it is.
    pub card: Card,
    context: sys::CUcontext,
    stream: sys::CUstream,
    modules: [sys::CUmodule; 2],
    functions: Mutex<HashMap<&'static str, sys::CUfunction>>,
    blas: blas::cublasLtHandle_t,
    products: Mutex<HashMap<Shape, Prepared>>,
    /// The card and its libraries, on which it depends how a sum is rounded.
    on: String,
    /// See [`tuning`].
    tuned: Mutex<BTreeMap<String, String>>,
    workspace: sys::CUdeviceptr,
    /// See [`Self::turn`].
    turn: Mutex<()>,
}

// SAFETY: the handles name things of the driver, which may be used by any thread that has made the
// context its own (`Gpu::enter`), and by several at once: the driver and cuBLASLt lock by themselves.
unsafe impl Send for Gpu {}
// SAFETY: as above.
unsafe impl Sync for Gpu {}

/// A piece of the device's memory.
pub struct Memory {
    all: View,
    gpu: Arc<Gpu>,
}

impl Memory {
    /// All of it.
    pub fn view(&self) -> View {
        self.all
    }
}

impl Drop for Memory {
    fn drop(&mut self) {
        if self.gpu.enter().is_ok() {
            // SAFETY: `Gpu::memory` has got it from the driver, and nobody else gives it back. The
            // driver waits for kernels that use it. What goes wrong here went wrong before.
            let _nothing_to_do = unsafe { cu::free_sync(self.all.at) };
        }
    }
}

/// Values in the device's memory, of 4 bytes each.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub struct View {
    at: sys::CUdeviceptr,
    /// How many.
    pub len: usize,
}

impl View {
    /// Some of them.
    ///
    /// # Panics
    /// If they are not there.
    pub fn part(&self, range: Range<usize>) -> Self {
        assert!(range.start <= range.end && range.end <= self.len, "{range:?} of {}", self.len);
        Self { at: self.at + 4 * range.start as u64, len: range.len() }
    }

    /// Those from one on.
    pub fn from(&self, first: usize) -> Self {
        self.part(first..self.len)
    }

    /// The view from a byte on; its last value may be incomplete.
    ///
    /// # Panics
    /// If it is behind their end.
    pub fn at_byte(&self, byte: usize) -> Self {
        assert!(byte <= 4 * self.len, "byte {byte} of {} values", self.len);
        Self { at: self.at + byte as u64, len: self.len - byte.div_ceil(4) }
    }
}

/// Launches that were recorded and are done again with one call.
pub struct Graph {
    launches: sys::CUgraphExec,
    gpu: Arc<Gpu>,
}

// SAFETY: as for `Gpu`.
unsafe impl Send for Graph {}

impl Graph {
    /// Does them.
    ///
    /// # Errors
    /// The device failed.
    pub fn launch(&self) -> Result<()> {
        // SAFETY: it lives as long as this, and so does the stream.
        unsafe { cu::graph::launch(self.launches, self.gpu.stream) }
            .map_err(|e| broken("a recorded step", e))
    }
}

impl Drop for Graph {
    fn drop(&mut self) {
        if self.gpu.enter().is_ok() {
            // SAFETY: nobody else has it. A launch that is under way ends first.
            let _nothing_to_do = unsafe { cu::graph::exec_destroy(self.launches) };
        }
    }
}

/// An argument of a kernel.
#[derive(Clone, Copy)]
pub struct Arg(u64);

impl From<View> for Arg {
    fn from(view: View) -> Self {
        Self(view.at)
    }
}

impl From<Option<View>> for Arg {
    /// A null pointer for nothing.
    fn from(view: Option<View>) -> Self {
        Self(view.map_or(0, |view| view.at))
    }
}

impl From<usize> for Arg {
    /// An `unsigned`.
    ///
    /// # Panics
    /// If it does not fit.
    fn from(value: usize) -> Self {
        Self(u64::from(u32::try_from(value).expect("sizes of 32 bits")))
    }
}

impl From<bool> for Arg {
    /// An `unsigned`.
    fn from(value: bool) -> Self {
        Self(u64::from(value))
    }
}

impl From<f32> for Arg {
    fn from(value: f32) -> Self {
        Self(u64::from(value.to_bits()))
    }
}

/// Arguments of a kernel, each of a type that one may have.
macro_rules! args {
    ($($arg:expr),* $(,)?) => { &[$($crate::engine::cuda::gpu::Arg::from($arg)),*] };
}
pub(super) use args;

impl Gpu {
    /// Makes card `index` ready: compiles the kernels, which takes a second.
    ///
    /// # Errors
    /// It is not there, or its driver does not give it to us.
    pub fn open(index: usize, kernels: &Kernels) -> Result<Arc<Self>> {
        let card = cards()?.into_iter().nth(index).ok_or_else(libraries::none_found)?;
        let open = || -> std::result::Result<_, DriverError> {
            let device = cu::device::get(index as i32)?;
            // SAFETY: the driver has just named this device. The context is never released.
            let context = unsafe { cu::primary_ctx::retain(device) }?;
            // SAFETY: the context is alive.
            unsafe { cu::ctx::set_current(context) }?;
            Ok((context, cu::stream::create(cu::stream::StreamKind::NonBlocking)?))
        };
        let (context, stream) = open().map_err(|e| broken("opening the card", e))?;
        let modules = [compile(kernels.fused, true, &card)?, compile(kernels.exact, false, &card)?];
        let blas = lt::create_handle().map_err(|e| broken("starting cuBLASLt", e))?;
        // SAFETY: the context is current.
        let workspace = unsafe { cu::malloc_sync(WORKSPACE) };
        let workspace = workspace.map_err(|e| too_large(WORKSPACE, e))?;
        let (functions, products, tuned) = Default::default();
        let on = on(&card).unwrap_or_default();
        let gpu = Self {
            card,
            context,
            stream,
            modules,
            functions,
            blas,
            products,
            on,
            tuned,
            workspace,
            turn: Mutex::default(),
        };
        Ok(Arc::new(gpu))
    }

    /// The right to use the card until it is given back: there is one stream, and what another thread
    /// launches while a step is recorded would become a part of it.
    ///
    /// # Errors
    /// The device failed.
    pub fn turn(&self) -> Result<MutexGuard<'_, ()>> {
        let turn = self.turn.lock().unwrap_or_else(PoisonError::into_inner);
        self.enter().map(|()| turn)
    }

    /// Makes this thread's calls go to the card. Everything below needs it.
    ///
    /// # Errors
    /// The device failed.
    fn enter(&self) -> Result<()> {
        // SAFETY: the context is retained for as long as the process lives.
        unsafe { cu::ctx::set_current(self.context) }.map_err(|e| broken("using the card", e))
    }

    /// Memory for `len` values, which are not set.
    ///
    /// # Errors
    /// There is not as much.
    pub fn memory(self: &Arc<Self>, len: usize) -> Result<Memory> {
        let bytes = 4 * len.max(1);
        // SAFETY: the context is current.
        let at = unsafe { cu::malloc_sync(bytes) }.map_err(|e| too_large(bytes, e))?;
        Ok(Memory { all: View { at, len }, gpu: self.clone() })
    }

    /// Copies values to the card.
    ///
    /// # Errors
    /// The device failed.
    ///
    /// # Panics
    /// If there is not as much room.
    pub fn upload<T: Pod>(&self, to: View, values: &[T]) -> Result<()> {
        self.upload_at(to, 0, bytemuck::cast_slice(values))
    }

    /// Copies bytes to the card, from byte `first` of `to` on.
    ///
    /// # Errors
    /// The device failed.
    ///
    /// # Panics
    /// If there is not as much room.
    pub fn upload_at(&self, to: View, first: usize, bytes: &[u8]) -> Result<()> {
        assert!(first + bytes.len() <= 4 * to.len, "{} bytes for {} values", bytes.len(), to.len);
        if bytes.is_empty() {
            return Ok(());
        }
        // SAFETY: `to` has the room. Memory that is not pinned is copied before the call returns.
        unsafe { cu::memcpy_htod_async(to.at + first as u64, bytes, self.stream) }
            .map_err(|e| broken("sending values", e))
    }

    /// The values, once all that was asked before is done.
    ///
    /// # Errors
    /// The device failed at this or at anything before it.
    pub fn download<T: Pod>(&self, from: View) -> Result<Vec<T>> {
        let mut values = vec![T::zeroed(); 4 * from.len / size_of::<T>()];
        let bytes: &mut [u8] = bytemuck::cast_slice_mut(&mut values);
        if !bytes.is_empty() {
            // SAFETY: as many bytes as `from` has, and they stay until the stream is done.
            unsafe { cu::memcpy_dtoh_async(bytes, from.at, self.stream) }
                .map_err(|e| broken("reading values", e))?;
        }
        self.wait()?;
        Ok(values)
    }

    /// Waits until all work queued on this stream is done.
    ///
    /// # Errors
    /// Something of it failed.
    pub fn wait(&self) -> Result<()> {
        // SAFETY: the stream lives as long as this.
        unsafe { cu::stream::synchronize(self.stream) }.map_err(|e| broken("computing", e))
    }

    /// Sets all values to 0.
    ///
    /// # Errors
    /// The device failed.
    pub fn zero(&self, values: View) -> Result<()> {
        // SAFETY: the device's own memory.
        unsafe { cu::memset_d8_async(values.at, 0, 4 * values.len, self.stream) }
            .map_err(|e| broken("clearing memory", e))
    }

    /// Runs a kernel of `grid` blocks of `threads` each.
    ///
    /// # Errors
    /// The device failed, maybe at something before.
    pub fn launch(
        &self,
        name: &'static str,
        grid: [usize; 2],
        threads: u32,
        args: &[Arg],
    ) -> Result<()> {
        if grid.contains(&0) {
            return Ok(());
        }
        let function = self.function(name)?;
        let mut words: Vec<u64> = args.iter().map(|arg| arg.0).collect();
        let mut params: Vec<*mut c_void> =
            words.iter_mut().map(|word| std::ptr::from_mut(word).cast()).collect();
        let [x, y] = grid.map(|side| u32::try_from(side).expect("a grid of 32 bits"));
        // SAFETY: each parameter is a word, and no kernel has longer ones; the driver copies them before
        // the call returns. They lie with their low bytes first on every machine that has such a card.
        unsafe {
            let (grid, block) = ((x, y, 1), (threads, 1, 1));
            cu::launch_kernel(function, grid, block, 0, self.stream, &mut params)
        }
        .map_err(|e| broken(name, e))
    }

    /// Runs a kernel that computes `n` values by themselves; their number is its last argument.
    ///
    /// # Errors
    /// As [`Self::launch`].
    pub fn each(&self, name: &'static str, n: usize, args: &[Arg]) -> Result<()> {
        let args: Vec<Arg> = args.iter().copied().chain([Arg::from(n)]).collect();
        self.launch(name, [n.div_ceil(THREADS as usize), 1], THREADS, &args)
    }

    /// Records what `work` launches instead of doing it.
    ///
    /// # Errors
    /// The device failed.
    pub fn record(self: &Arc<Self>, work: impl FnOnce() -> Result<()>) -> Result<Graph> {
        let mode = sys::CUstreamCaptureMode::CU_STREAM_CAPTURE_MODE_THREAD_LOCAL;
        let failed = |e| broken("recording a step", e);
        // SAFETY: the stream is alive and ours; what is recorded is alive as long as the graph's owner
        // keeps the memory that the launches name.
        unsafe {
            cu::stream::begin_capture(self.stream, mode).map_err(failed)?;
            let done = work();
            let graph = cu::stream::end_capture(self.stream).map_err(failed)?;
            done?;
            let launches = cu::graph::instantiate(graph, sys::CUgraphInstantiate_flags(0));
            cu::graph::destroy(graph).map_err(failed)?;
            Ok(Graph { launches: launches.map_err(failed)?, gpu: self.clone() })
        }
    }

    fn function(&self, name: &'static str) -> Result<sys::CUfunction> {
        let mut functions = self.functions.lock().unwrap_or_else(PoisonError::into_inner);
        if let Some(function) = functions.get(name) {
            return Ok(*function);
        }
        let text = CString::new(name).expect("names of kernels");
        // SAFETY: modules are never unloaded.
        let in_module = |module| unsafe { cu::module::get_function(module, text.clone()) };
        let function = in_module(self.modules[0]).or_else(|_| in_module(self.modules[1]));
        let function = function.map_err(|e| broken(name, e))?;
        functions.insert(name, function);
        Ok(function)
    }
}

fn compile(kernels: &str, fused: bool, card: &Card) -> Result<sys::CUmodule> {
    let [major, minor] = card.capability;
    let options =
        vec![format!("--gpu-architecture=compute_{major}{minor}"), format!("--fmad={fused}")];
    let options = CompileOptions { options, ..Default::default() };
    let refused = |reason: String| {
        Error::Device(format!(
            "the kernels cannot be made ready for {}: {reason}\n  use versions of NVIDIA's driver and of \
             its run-time compiler (libnvrtc) that belong together, or --device cpu",
            card.name
        ))
    };
    let ptx = compile_ptx_with_opts(kernels, options).map_err(|e| refused(format!("{e:?}")))?;
    let image = CString::new(ptx.to_src()).map_err(|e| refused(e.to_string()))?;
    // SAFETY: the image ends with a zero and is read before the call returns.
    unsafe { cu::module::load_data(image.as_ptr().cast()) }.map_err(|e| refused(format!("{e}")))
}

/// Error for memory that the card does not give.
fn too_large(bytes: usize, error: DriverError) -> Error {
    let free = cu::mem_get_info().map_or(0, |(free, _)| free);
    let gb = |bytes: usize| bytes as f64 / 1e9;
    Error::Device(format!(
        "the card does not give {:.2} GB more, {:.2} GB are free ({error})\n  end other programs on it, set \
         a smaller pretrain.optim.micro_batch and finetune.optim.micro_batch, or use --device cpu",
        gb(bytes),
        gb(free)
    ))
}

/// The device failed at something.
fn broken(what: &str, error: impl std::fmt::Debug) -> Error {
    failed(&format!("{what}: {error:?}"))
}
