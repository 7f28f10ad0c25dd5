//! What has to be on a machine for an NVIDIA card to compute, and what to do where it is not.

use cudarc::driver::DriverError;

use super::gpu;
use crate::error::{Error, Result};

/// Whether the driver and CUDA's two libraries can be loaded.
///
/// # Errors
/// One cannot: which, and how to get it.
pub fn present() -> Result<()> {
    let missing = LIBRARIES.iter().zip(gpu::libraries()).find(|(_, found)| !found);
    missing.map_or(Ok(()), |(library, _)| Err(library.missing()))
}

/// A library that is loaded at run time.
struct Library {
    name: &'static str,
    is: &'static str,
    get: &'static str,
}

const LIBRARIES: [Library; 3] = [
    Library {
        name: "libcuda.so.1",
        is: "NVIDIA's driver",
        get: "install NVIDIA's driver (on Debian: apt install nvidia-driver); in a container, start it \
              with the card (docker run --gpus all)",
    },
    Library {
        name: "libnvrtc.so.13 or libnvrtc.so.12",
        is: "CUDA's run-time compiler",
        get: "install CUDA's toolkit, or: pip install nvidia-cuda-nvrtc, and name the folder of its \
              libnvrtc.so in LD_LIBRARY_PATH",
    },
    Library {
        name: "libcublasLt.so.13 or libcublasLt.so.12",
        is: "CUDA's matrix products",
        get: "install CUDA's toolkit, or: pip install nvidia-cublas, and name the folder of its \
              libcublasLt.so in LD_LIBRARY_PATH",
    },
];

impl Library {
    fn missing(&self) -> Error {
        let Self { name, is, get } = self;
        Error::Device(format!(
            "--device cuda needs {is}, and {name} is not found\n  {get}\n  or use --device cpu"
        ))
    }
}

/// The driver is there and has refused.
pub fn no_card(error: DriverError) -> Error {
    Error::Device(format!(
        "NVIDIA's driver is there, but gives no card: {error}\n  does nvidia-smi list one? Otherwise use \
         --device cpu"
    ))
}

/// The driver is there and knows none.
pub fn none_found() -> Error {
    Error::Device(
        "NVIDIA's driver is there, but knows no card\n  is CUDA_VISIBLE_DEVICES empty? Otherwise use \
         --device cpu"
            .to_owned(),
    )
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn each_library_is_named_with_how_to_get_it() {
        for (library, name, get) in [
            (0, "libcuda.so.1", "nvidia-driver"),
            (1, "libnvrtc.so", "pip install nvidia-cuda-nvrtc"),
            (2, "libcublasLt.so", "pip install nvidia-cublas"),
        ] {
            let error = LIBRARIES[library].missing();
            assert_eq!(error.exit_code(), 4);
            let text = error.to_string();
            assert!(text.contains(name) && text.contains(get), "{text}");
        }
    }
}
