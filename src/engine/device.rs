//! Which device computes: what users write behind `--device`, what the machine has, and what stops a
//! run before it begins.

mod read;
mod self_check;
#[cfg(feature = "wgpu")]
mod wgpu;
#[cfg(not(feature = "wgpu"))]
#[path = "device/without_wgpu.rs"]
mod wgpu;

use std::fmt;
use std::str::FromStr;
use std::sync::{Mutex, PoisonError};

use burn::tensor::Device;

#[cfg(feature = "cuda")]
pub(super) use read::failed;
pub use read::{read, watched};
pub use self_check::self_check;
pub use wgpu::adapters;

use super::cuda;
pub use super::cuda::cards;
use crate::error::{Error, Result};
use crate::ops;

const BUILT_FOR: &str = match (cfg!(feature = "cuda"), cfg!(feature = "wgpu")) {
    (true, true) => "cpu, cuda or cuda:1, wgpu or wgpu:1, auto",
    (true, false) => "cpu, cuda or cuda:1, auto",
    (false, true) => "cpu, wgpu or wgpu:1, auto",
    (false, false) => "cpu",
};

/// A device as users write it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum DeviceName {
    /// `cpu`: the kernels of this crate.
    Cpu,
    /// `cuda` or `cuda:1`: an entry of [`cards`].
    Cuda(usize),
    /// `wgpu` or `wgpu:1`: an entry of [`adapters`].
    Wgpu(usize),
    /// `auto`: the first of [`cards`], otherwise the first GPU of [`adapters`] that is no software,
    /// otherwise the CPU.
    Auto,
}

impl fmt::Display for DeviceName {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Cpu => f.write_str("cpu"),
            Self::Cuda(index) => write!(f, "cuda:{index}"),
            Self::Wgpu(index) => write!(f, "wgpu:{index}"),
            Self::Auto => f.write_str("auto"),
        }
    }
}

impl FromStr for DeviceName {
    type Err = Error;

    /// # Errors
    /// There is no such device in any fewvit.
    fn from_str(text: &str) -> Result<Self> {
        let unknown = || {
            Error::Device(format!(
                "this fewvit has no device `{text}`; it was built for: {BUILT_FOR}"
            ))
        };
        let (name, index) = match text.split_once(':') {
            Some((name, index)) => (name, Some(index.parse().map_err(|_| unknown())?)),
            None => (text, None),
        };
        match (name, index) {
            ("cpu", None) => Ok(Self::Cpu),
            ("auto", None) => Ok(Self::Auto),
            ("cuda", index) => Ok(Self::Cuda(index.unwrap_or(0))),
            ("wgpu", index) => Ok(Self::Wgpu(index.unwrap_or(0))),
            _ => Err(unknown()),
        }
    }
}

/// An NVIDIA card as its driver describes it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Card {
    /// As its driver calls it.
    pub name: String,
    /// Bytes of memory.
    pub memory: u64,
    /// Compute capability, which names its generation.
    pub capability: [i32; 2],
}

impl fmt::Display for Card {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Self { name, memory, capability: [major, minor] } = self;
        write!(f, "{name} ({:.1} GB, compute capability {major}.{minor})", *memory as f64 / 1e9)
    }
}

/// The NVIDIA card of this name with the versions of its driver and library, on which it depends how a
/// sum is rounded; none for other devices.
pub fn card_and_libraries(name: DeviceName) -> Option<String> {
    let DeviceName::Cuda(index) = name else { return None };
    let card = cards().ok()?.into_iter().nth(index)?;
    cuda::with_versions(&card)
}

/// What an adapter is made of.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum Kind {
    /// A card of its own.
    DiscreteGpu,
    /// A part of the processor's chip.
    IntegratedGpu,
    /// A share of another machine's GPU.
    VirtualGpu,
    /// A driver that computes on the CPU.
    Software,
}

impl fmt::Display for Kind {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::DiscreteGpu => "GPU",
            Self::IntegratedGpu => "integrated GPU",
            Self::VirtualGpu => "virtual GPU",
            Self::Software => "software on the CPU, no GPU",
        })
    }
}

/// A device that wgpu reaches.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Adapter {
    /// As its driver calls it.
    pub name: String,
    /// What it is made of.
    pub kind: Kind,
    /// How many of its kind come before it.
    pub index: usize,
    /// Graphics API: `Vulkan`, `Metal` or `Dx12`.
    pub api: String,
    /// Its driver, with version.
    pub driver: String,
    /// The largest piece of memory that one tensor may have, in bytes: wgpu does not tell how much
    /// there is in all.
    pub largest_tensor: u64,
}

impl fmt::Display for Adapter {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Self { name, kind, api, driver, .. } = self;
        write!(f, "{name} ({kind}; {api}, {driver})")
    }
}

/// Where a run computes.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Place {
    /// On the CPU, by the kernels of this crate.
    Cpu,
    /// On an NVIDIA card, by number.
    Cuda(usize),
    /// On a device of wgpu.
    Wgpu(Adapter),
}

/// What `name` means on this machine.
///
/// # Errors
/// There is no such device here, with what to do about it.
pub fn find(name: DeviceName) -> Result<Place> {
    choose(name, cards, adapters)
}

/// The drivers are asked only where the name calls for them.
fn choose(
    name: DeviceName,
    cards: impl FnOnce() -> Result<Vec<Card>>,
    adapters: impl FnOnce() -> Result<Vec<Adapter>>,
) -> Result<Place> {
    match name {
        DeviceName::Cpu => Ok(Place::Cpu),
        DeviceName::Cuda(index) => {
            let cards = cards()?;
            match index < cards.len() {
                true => Ok(Place::Cuda(index)),
                false => Err(no_such(name, "cuda", &cards)),
            }
        }
        DeviceName::Wgpu(index) => {
            let mut adapters = adapters()?;
            match index < adapters.len() {
                true => Ok(Place::Wgpu(adapters.swap_remove(index))),
                false => Err(no_such(name, "wgpu", &adapters)),
            }
        }
        DeviceName::Auto if cards().is_ok_and(|cards| !cards.is_empty()) => Ok(Place::Cuda(0)),
        DeviceName::Auto => {
            let gpu = |adapter: &Adapter| adapter.kind != Kind::Software;
            let found = adapters().unwrap_or_default().into_iter().find(gpu);
            Ok(found.map_or(Place::Cpu, Place::Wgpu))
        }
    }
}

fn no_such(name: DeviceName, kind: &str, there: &[impl fmt::Display]) -> Error {
    let lines = there.iter().enumerate();
    let there: String = lines.map(|(i, device)| format!("\n  {kind}:{i}  {device}")).collect();
    Error::Device(format!("this machine has no device `{name}`; it has:{there}"))
}

/// What `auto` means on this machine; other names stay, once it is known that there is such a device.
///
/// # Errors
/// There is none.
pub fn settle(name: DeviceName) -> Result<DeviceName> {
    let place = find(name)?;
    match (name, place) {
        (DeviceName::Auto, Place::Wgpu(first)) => {
            let index = adapters()?.iter().position(|adapter| *adapter == first);
            Ok(DeviceName::Wgpu(index.unwrap_or(0)))
        }
        (DeviceName::Auto, Place::Cuda(index)) => Ok(DeviceName::Cuda(index)),
        (DeviceName::Auto, Place::Cpu) => Ok(DeviceName::Cpu),
        (name, _) => Ok(name),
    }
}

/// Makes a device ready. The first time it has to show that it computes what the CPU does.
///
/// # Errors
/// It is not there, its driver does not give it to us, or it answers wrongly.
pub fn check(name: DeviceName) -> Result<()> {
    match find(name)? {
        Place::Cpu => Ok(()),
        Place::Cuda(index) => cuda::check(index),
        Place::Wgpu(_) => open(name).map(|_| ()),
    }
}

/// A device ready for burn's tensors, without autodiff. The first time it has to show that it computes what the
/// CPU does.
///
/// # Errors
/// It is not there or none of burn's, its driver does not give it to us, or it answers wrongly.
pub fn open(name: DeviceName) -> Result<Device> {
    let adapter = match find(name)? {
        Place::Cpu => return Ok(ops::cpu()),
        Place::Cuda(_) => return Err(Error::Device(format!("no tensors of burn are on {name}"))),
        Place::Wgpu(adapter) => adapter,
    };
    static CHECKED: Mutex<Vec<Adapter>> = Mutex::new(Vec::new());
    read::watch_threads();
    let device = wgpu::open(&adapter)?;
    let mut checked = CHECKED.lock().unwrap_or_else(PoisonError::into_inner);
    if !checked.contains(&adapter) {
        self_check(&device)?;
        checked.push(adapter);
    }
    Ok(device)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn adapter(name: &str, kind: Kind) -> Adapter {
        let [name, api, driver] = [name, "Vulkan", "driver 1"].map(str::to_owned);
        Adapter { name, kind, index: 0, api, driver, largest_tensor: 1 << 30 }
    }

    fn card() -> Card {
        Card { name: "H100".to_owned(), memory: 80_000_000_000, capability: [9, 0] }
    }

    #[test]
    fn devices_are_read_as_users_write_them() {
        let read = |text: &str| text.parse::<DeviceName>();
        for (text, name) in [
            ("cpu", DeviceName::Cpu),
            ("auto", DeviceName::Auto),
            ("cuda", DeviceName::Cuda(0)),
            ("cuda:3", DeviceName::Cuda(3)),
            ("wgpu", DeviceName::Wgpu(0)),
            ("wgpu:12", DeviceName::Wgpu(12)),
        ] {
            assert_eq!(read(text).expect(text), name);
        }
        for text in ["tpu", "", "cpu:0", "auto:1", "wgpu:", "wgpu:x", "wgpu:-1", "CPU", "cuda:0:1"]
        {
            let error = read(text).expect_err(text);
            assert_eq!(error.exit_code(), 4, "{text}");
            assert!(
                error.to_string().contains(&format!("`{text}`; it was built for: cpu")),
                "{error}"
            );
        }
    }

    #[test]
    fn auto_takes_a_gpu_but_never_software() {
        let software = || adapter("llvmpipe", Kind::Software);
        let gpu = || adapter("Radeon", Kind::DiscreteGpu);
        let no_card = || Err(Error::Device("no card".to_owned()));
        let auto = |found| choose(DeviceName::Auto, no_card, || found).expect("always something");
        assert_eq!(auto(Ok(vec![software()])), Place::Cpu);
        assert_eq!(auto(Err(Error::Device("no driver".to_owned()))), Place::Cpu);
        assert_eq!(auto(Ok(vec![gpu(), software()])), Place::Wgpu(gpu()));
        let asked = choose(DeviceName::Wgpu(0), no_card, || Ok(vec![software()]));
        assert_eq!(asked.expect("asked for"), Place::Wgpu(software()));
        let both = choose(DeviceName::Auto, || Ok(vec![card()]), || Ok(vec![gpu()]));
        assert_eq!(both.expect("the card"), Place::Cuda(0));
    }

    #[test]
    fn what_is_not_there_is_refused_with_what_is() {
        let refused = |name, found| {
            let error = choose(name, || Ok(vec![card()]), || found).expect_err("not there");
            assert_eq!(error.exit_code(), 4);
            error.to_string()
        };
        let one = || Ok(vec![adapter("llvmpipe", Kind::Software)]);
        let text = refused(DeviceName::Wgpu(1), one());
        assert!(text.contains("wgpu:0  llvmpipe (software on the CPU, no GPU; Vulkan"), "{text}");
        let text = refused(DeviceName::Cuda(1), one());
        assert!(text.contains("`cuda:1`; it has:\n  cuda:0  H100 (80.0 GB, compute"), "{text}");
        let text = refused(DeviceName::Wgpu(0), Err(Error::Device("no driver".to_owned())));
        assert_eq!(text, "no driver");
    }
}
