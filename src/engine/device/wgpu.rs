//! GPUs of any maker through wgpu: Vulkan, Metal or Direct3D 12.

use std::path::Path;
use std::sync::{Mutex, OnceLock, PoisonError};

use burn::tensor::wgpu::{WgpuBackend, wgpu};
use burn::tensor::{Device, DeviceKind};

use super::{Adapter, Kind};
use crate::error::{Error, Result};

/// The graphics APIs that compute, best first.
const APIS: [(WgpuBackend, wgpu::Backend); 3] = [
    (WgpuBackend::Vulkan, wgpu::Backend::Vulkan),
    (WgpuBackend::Metal, wgpu::Backend::Metal),
    (WgpuBackend::Dx12, wgpu::Backend::Dx12),
];

/// Devices that were opened: burn opens each once. The lock also keeps Vulkan's loader to one thread,
/// which it needs while instances are made.
static OPENED: Mutex<Vec<(Adapter, Device)>> = Mutex::new(Vec::new());

/// The adapters of this machine, GPUs before software; their places are the `i` of `--device wgpu:i`.
///
/// # Errors
/// No driver answers: what is missing, and how to get it.
pub fn adapters() -> Result<Vec<Adapter>> {
    let _one_thread = OPENED.lock().unwrap_or_else(PoisonError::into_inner);
    // Asked once: it takes a while, and without XDG_RUNTIME_DIR Mesa complains at each time.
    static FOUND: OnceLock<Vec<Adapter>> = OnceLock::new();
    // A driver may do anything, and what it does must not end the program.
    let found = FOUND.get_or_init(|| std::thread::spawn(ask).join().unwrap_or_default());
    match found.is_empty() {
        true => Err(Error::Device(nothing_answers(&driver_files(&DRIVER_FOLDERS.map(Path::new))))),
        false => Ok(found.clone()),
    }
}

/// The adapters of the first API that has a GPU, otherwise of the first that has anything.
fn ask() -> Vec<Adapter> {
    let instance = wgpu::Instance::new(wgpu::InstanceDescriptor {
        backends: wgpu::Backends::PRIMARY,
        ..wgpu::InstanceDescriptor::new_without_display_handle()
    });
    let of = |(_, api): &(_, wgpu::Backend)| {
        let found = pollster::block_on(instance.enumerate_adapters((*api).into()));
        let mut adapters: Vec<Adapter> = Vec::new();
        for (kind, seen) in found.iter().filter_map(|a| Some((kind(&a.get_info())?, a))) {
            let index = adapters.iter().filter(|other| other.kind == kind).count();
            adapters.push(described(seen, kind, index));
        }
        // burn names software without a number.
        adapters.retain(|a| a.kind != Kind::Software || a.index == 0);
        adapters.sort_by_key(|adapter| adapter.kind);
        adapters
    };
    let found: Vec<Vec<Adapter>> = APIS.iter().map(of).filter(|found| !found.is_empty()).collect();
    let has_gpu = |adapters: &&Vec<Adapter>| adapters[0].kind != Kind::Software;
    found.iter().find(has_gpu).or(found.first()).cloned().unwrap_or_default()
}

fn kind(info: &wgpu::AdapterInfo) -> Option<Kind> {
    match info.device_type {
        wgpu::DeviceType::DiscreteGpu => Some(Kind::DiscreteGpu),
        wgpu::DeviceType::IntegratedGpu => Some(Kind::IntegratedGpu),
        wgpu::DeviceType::VirtualGpu => Some(Kind::VirtualGpu),
        wgpu::DeviceType::Cpu => Some(Kind::Software),
        // burn cannot name it.
        wgpu::DeviceType::Other => None,
    }
}

fn described(adapter: &wgpu::Adapter, kind: Kind, index: usize) -> Adapter {
    let (info, limits) = (adapter.get_info(), adapter.limits());
    Adapter {
        name: info.name,
        kind,
        index,
        api: format!("{:?}", info.backend),
        driver: format!("{} {}", info.driver, info.driver_info).trim().to_owned(),
        largest_tensor: limits.max_buffer_size.min(limits.max_storage_buffer_binding_size),
    }
}

/// Makes an adapter ready for tensors.
///
/// # Errors
/// Its driver does not give it to us.
pub fn open(adapter: &Adapter) -> Result<Device> {
    let mut opened = OPENED.lock().unwrap_or_else(PoisonError::into_inner);
    if let Some((_, device)) = opened.iter().find(|(other, _)| other == adapter) {
        return Ok(device.clone());
    }
    let kind = match adapter.kind {
        Kind::DiscreteGpu => DeviceKind::DiscreteGpu(adapter.index),
        Kind::IntegratedGpu => DeviceKind::IntegratedGpu(adapter.index),
        Kind::VirtualGpu => DeviceKind::VirtualGpu(adapter.index),
        Kind::Software => DeviceKind::Cpu,
    };
    let (api, _) =
        APIS.iter().find(|(_, api)| format!("{api:?}") == adapter.api).unwrap_or(&APIS[0]);
    let options = Device::wgpu_options().device_kind(kind).graphics_api(*api);
    let refused = |reason: String| {
        Error::Device(format!(
            "{adapter} cannot be opened: {reason}\n  update its driver, or use --device cpu"
        ))
    };
    let device = std::thread::spawn(move || options.init())
        .join()
        .map_err(|_| refused("its driver failed".to_owned()))?
        .map_err(|e| refused(e.to_string()))?;
    opened.push((adapter.clone(), device.clone()));
    Ok(device)
}

/// Where Vulkan's loader looks for drivers.
const DRIVER_FOLDERS: [&str; 3] =
    ["/usr/share/vulkan/icd.d", "/etc/vulkan/icd.d", "/usr/local/share/vulkan/icd.d"];

/// Names of the files by which drivers announce themselves to Vulkan's loader.
fn driver_files(folders: &[&Path]) -> Vec<String> {
    let entries = folders.iter().filter_map(|folder| std::fs::read_dir(folder).ok()).flatten();
    let names = entries.flatten().map(|entry| entry.file_name().to_string_lossy().into_owned());
    let mut names: Vec<String> = names.filter(|name| name.ends_with(".json")).collect();
    names.sort();
    names
}

fn nothing_answers(drivers: &[String]) -> String {
    let why = match drivers {
        [] => "no Vulkan driver is installed".to_owned(),
        names => format!(
            "either Vulkan's loader (libvulkan.so.1) is missing, or none of its drivers has a device here: {}",
            names.join(", ")
        ),
    };
    format!(
        "--device wgpu finds no device: {why}\n  on Debian and Ubuntu: apt install libvulkan1 mesa-vulkan-drivers (for AMD, Intel and software on the CPU); NVIDIA's come with its driver\n  or use --device cpu"
    )
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_machine_without_devices_is_told_what_is_missing() {
        let folder = tempfile::tempdir().expect("a temporary folder");
        let absent = folder.path().join("absent");
        let files = || driver_files(&[&absent, folder.path()]);
        assert!(nothing_answers(&files()).contains("no Vulkan driver is installed"));
        std::fs::write(folder.path().join("radeon_icd.json"), "{}").expect("a file");
        std::fs::write(folder.path().join("README"), "").expect("a file");
        let text = nothing_answers(&files());
        assert!(
            text.contains("libvulkan.so.1") && text.contains("here: radeon_icd.json\n"),
            "{text}"
        );
    }
}
