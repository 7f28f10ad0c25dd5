//! The composed operations on a device of wgpu against the same on the CPU, value and gradient, and
//! what becomes of a device that fails. Debian's software Vulkan is enough (libvulkan1,
//! mesa-vulkan-drivers); without any device the tests say that they did nothing.
#![cfg(feature = "wgpu")]

use std::io::Write as _;

use burn::tensor::wgpu::{WgpuSetup, wgpu};
use burn::tensor::{Device, Tensor, TensorData};
use fewvit::data::augment::CropBox;
use fewvit::data::mixing::{Mix, MixKind};
use fewvit::engine::device::{self, DeviceName, Place};
use fewvit::engine::pixels::pixels;
use fewvit::ops::{self, MixedTarget, SoftTargets, Windows};

/// The first device of this machine, or `None` after saying so where nothing captures it.
fn device() -> Option<Device> {
    match device::find(DeviceName::Wgpu(0)) {
        Ok(_) => Some(device::open(DeviceName::Wgpu(0)).expect("a device that is there opens")),
        Err(e) => {
            let text = format!("\nSKIPPED, nothing was tested: {e}\n");
            std::io::stderr().write_all(text.as_bytes()).expect("standard error");
            None
        }
    }
}

/// Numbers in [-1, 1), other ones for each `index`.
fn numbers(count: usize, index: u64) -> Vec<f32> {
    let mut state = index.wrapping_mul(0x9E37_79B9_7F4A_7C15) | 1;
    let mut next = || {
        state =
            state.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1_442_695_040_888_963_407);
        (state >> 40) as f32 / (1u64 << 23) as f32 - 1.0
    };
    (0..count).map(|_| next()).collect()
}

fn values<const D: usize>(tensor: Tensor<D>) -> Vec<f32> {
    device::read(tensor).expect("the device answers")
}

/// The value of `op` of leaves of these sizes, and the gradients of all of them.
fn answers(
    device: &Device,
    sizes: &[usize],
    op: &dyn Fn(&[Tensor<1>]) -> Tensor<1>,
) -> Vec<Vec<f32>> {
    let device = device.clone().autodiff();
    let leaf = |(i, &size): (usize, &usize)| {
        let data = TensorData::new(numbers(size, i as u64 + 1), [size]);
        Tensor::<1>::from_data(data, &device).require_grad()
    };
    let leaves: Vec<_> = sizes.iter().enumerate().map(leaf).collect();
    let y = op(&leaves);
    let weights = TensorData::new(numbers(y.dims()[0], 99), y.dims());
    // A gradient that differs in every element, so that mixed-up indices show.
    let grads = (y.clone() * Tensor::from_data(weights, &device)).sum().backward();
    let mut answers = vec![values(y)];
    answers.extend(leaves.iter().filter_map(|leaf| leaf.grad(&grads)).map(values));
    answers
}

/// 1e-4 of the largest value: sums in another order and a driver's exp and erf stay ten times below.
fn assert_close(a: &[f32], b: &[f32], what: &str) {
    assert_eq!(a.len(), b.len(), "{what}");
    let largest = b.iter().fold(1e-6f32, |m, v| m.max(v.abs()));
    let differ = |a: f32, b: f32| (a - b).is_nan() || (a - b).abs() > 1e-4 * largest;
    let wrong = a.iter().zip(b).find(|&(&a, &b)| differ(a, b));
    assert!(wrong.is_none(), "{what}: {wrong:?} of {largest}");
}

/// Holds the device to the CPU, and says which gradients there must be.
fn same(what: &str, sizes: &[usize], op: impl Fn(&[Tensor<1>]) -> Tensor<1>) {
    let Some(device) = device() else { return };
    let seen = answers(&device, sizes, &op);
    let expected = ops::composed_only(|| answers(&Device::flex(), sizes, &op));
    assert_eq!(seen.len(), expected.len(), "{what}");
    for (i, (a, b)) in seen.iter().zip(&expected).enumerate() {
        assert_close(a, b, &format!("{what}, {i}"));
    }
}

fn flat<const D: usize>(y: Tensor<D>) -> Tensor<1> {
    y.flatten(0, D - 1)
}

#[test]
fn linear_layers() {
    let sizes = [7 * 65, 33 * 65, 33, 7 * 33];
    let parts = |t: &[Tensor<1>]| {
        (t[0].clone().reshape([7, 65]), t[1].clone().reshape([33, 65]), t[2].clone())
    };
    same("linear", &sizes[..3], |t| {
        let (x, w, b) = parts(t);
        flat(ops::linear(x, w, b))
    });
    same("linear_gelu", &sizes[..3], |t| {
        let (x, w, b) = parts(t);
        flat(ops::linear_gelu(x, w, b))
    });
    same("linear_residual", &sizes, |t| {
        let ((x, w, b), factors) = (parts(t), vec![0.0, 1.5, 1.0, 0.0, 2.0, 1.0, 1.0]);
        flat(ops::linear_residual(x, w, b, t[3].clone().reshape([7, 33]), Some(factors)))
    });
}

#[test]
fn layer_norms() {
    same("layer_norm", &[50 * 17, 17, 17], |t| {
        flat(ops::layer_norm(t[0].clone().reshape([50, 17]), t[1].clone(), t[2].clone(), 1e-6))
    });
}

#[test]
fn attentions() {
    same("attention", &[2 * 37 * 3 * 40], |t| {
        flat(ops::attention(t[0].clone().reshape([2, 37, 120]), 2))
    });
    same("cross_attention", &[3 * 49 * 40, 3 * 4 * 80], |t| {
        let (q, kv) = (t[0].clone().reshape([3, 49, 40]), t[1].clone().reshape([3, 4, 80]));
        flat(ops::cross_attention(q, kv, 2))
    });
    same("performer", &[2 * 37 * 48, 8 * 16], |t| {
        let w = t[1].clone().detach().reshape([8, 16]);
        flat(ops::performer(t[0].clone().reshape([2, 37, 48]), w))
    });
}

#[test]
fn blocks() {
    let layer = |t: &[Tensor<1>], i: usize, [out, input]: [usize; 2]| {
        (t[i].clone().reshape([out, input]), t[i + 1].clone())
    };
    let norm = |t: &[Tensor<1>]| (t[1].clone(), t[2].clone(), 1e-6);
    let [rows, dim, hidden] = [18, 16, 40];
    let factors: Vec<f32> = (0..rows).map(|row| [0.0, 1.25][row % 2]).collect();
    let (in_all, first) = (rows * dim, [rows * dim, dim, dim]);
    let sizes = [&first[..], &[3 * dim * dim, 3 * dim, dim * dim, dim]].concat();
    same("attention_block", &sizes, |t| {
        let x = t[0].clone().reshape([rows, dim]);
        let (qkv, proj) = (layer(t, 3, [3 * dim, dim]), layer(t, 5, [dim, dim]));
        flat(ops::attention_block(x, norm(t), qkv, proj, [2, 2], Some(factors.clone())))
    });
    let sizes = [&first[..], &[hidden * dim, hidden, dim * hidden, dim]].concat();
    same("mlp_block", &sizes, |t| {
        let x = t[0].clone().reshape([rows, dim]);
        let (fc1, fc2) = (layer(t, 3, [hidden, dim]), layer(t, 5, [dim, hidden]));
        flat(ops::mlp_block(x, norm(t), fc1, fc2, Some(factors.clone())))
    });
    let sizes = [&sizes[..], &[hidden * 9, hidden]].concat();
    same("conv_mlp_block", &sizes, |t| {
        let x = t[0].clone().reshape([rows, dim]);
        let (fc1, fc2) = (layer(t, 3, [hidden, dim]), layer(t, 5, [dim, hidden]));
        let kernels = (t[7].clone().reshape([hidden, 1, 3, 3]), t[8].clone());
        flat(ops::conv_mlp_block(x, norm(t), fc1, kernels, fc2, [2, 3], Some(factors.clone())))
    });
    same("dropout_residual", &[in_all, rows * (dim + 3)], |t| {
        let factors = (0..in_all).map(|i| [0.0, 2.0, 1.0][i % 3]).collect();
        let residual = t[1].clone().reshape([rows, dim + 3]);
        flat(ops::dropout_residual(t[0].clone().reshape([rows, dim]), residual, Some(factors)))
    });
}

#[test]
fn windows_and_convolutions() {
    let map = |t: &[Tensor<1>]| t[0].clone().reshape([2, 3, 9, 8]).permute([0, 2, 3, 1]);
    for (kernel, stride, padding) in [(1, 1, 0), (3, 2, 1), (7, 4, 2), (2, 2, 0)] {
        let windows = Windows { kernel, stride, padding };
        same(&format!("unfold {windows:?}"), &[2 * 3 * 9 * 8], |t| {
            flat(ops::unfold(map(t), windows))
        });
        let size = 5 * 3 * kernel * kernel;
        same(&format!("conv2d {windows:?}"), &[2 * 3 * 9 * 8, size, 5], |t| {
            let w = t[1].clone().reshape([5, 3, kernel, kernel]);
            flat(ops::conv2d(map(t), w, t[2].clone(), windows))
        });
    }
    same("depthwise", &[2 * 7 * 4 * 17, 17 * 9, 17], |t| {
        let (x, w) = (t[0].clone().reshape([2, 7, 4, 17]), t[1].clone().reshape([17, 1, 3, 3]));
        flat(ops::depthwise_conv3x3_gelu(x, w, t[2].clone()))
    });
}

#[test]
fn cross_entropies() {
    same("cross-entropy", &[7 * 129], |t| {
        // Also both targets of one class.
        let target = |row: usize| MixedTarget { a: row * 3, b: row * row, shares: [0.7, 0.6] };
        let rows = (0..7).map(target).collect();
        let targets = SoftTargets { rows, on: 0.9, off: 0.1 / 129.0 };
        ops::mixed_cross_entropy(t[0].clone().reshape([7, 129]), targets)
    });
}

#[test]
fn crops_cross_as_bytes() {
    let Some(device) = device() else { return };
    let (rows, s) = (3, 5);
    let crops: Vec<u8> = (0..rows * s * s * 3).map(|i| (i * 37 % 256) as u8).collect();
    let (mean, std) = ([0.485, 0.456, 0.406], [0.229, 0.224, 0.225]);
    for kind in [MixKind::None, MixKind::CutMix(CropBox { x: 1, y: 2, w: 3, h: 2 }), MixKind::Mixup]
    {
        let mix = Mix { kind, lambda: 0.7, partner: vec![2, 1, 0] };
        let mut expected = vec![0.0; rows * 3 * s * s];
        for (row, out) in expected.chunks_exact_mut(3 * s * s).enumerate() {
            mix.write_row(&crops, row, s, mean, std, out);
        }
        let seen = values(pixels(&crops, &mix, s, mean, std, &device));
        assert_close(&seen, &expected, &format!("{kind:?}"));
    }
}

#[test]
fn a_device_that_is_right_passes_the_self_check() {
    let Some(device) = device() else { return };
    device::self_check(&device).expect("the software device is right");
    device::self_check(&device).expect("and stays so");
}

#[test]
fn a_device_that_is_lost_is_an_error_and_no_panic() {
    let Ok(Place::Wgpu(_)) = device::find(DeviceName::Wgpu(0)) else { return };
    // Another device on the same adapter, so that the other tests keep theirs.
    let instance = wgpu::Instance::new(wgpu::InstanceDescriptor::new_without_display_handle());
    let adapters = pollster::block_on(instance.enumerate_adapters(wgpu::Backends::PRIMARY));
    let adapter = adapters.into_iter().next().expect("an adapter");
    let asked = adapter.request_device(&wgpu::DeviceDescriptor::default());
    let (device, queue) = pollster::block_on(asked).expect("a device");
    let (handle, backend) = (device.clone(), adapter.get_info().backend);
    let setup = WgpuSetup { instance, adapter, device, queue, backend };
    let device = Device::wgpu_options().setup(setup).init().expect("burn takes it");
    let ones = || Tensor::<1>::ones([4], &device) * 2.0;
    assert_eq!(values(ones()), [2.0; 4]);
    handle.destroy();
    let _ = handle.poll(wgpu::PollType::wait_indefinitely());
    let error = device::watched(ones).and_then(device::read).expect_err("it is gone");
    assert_eq!(error.exit_code(), 4);
    assert!(error.to_string().contains("the last checkpoint is kept"), "{error}");
}

/// A failed device stays failed for the whole process, so this test has one of its own.
#[test]
fn a_panic_on_a_devices_thread_fails_every_later_read() {
    const CHILD: &str = "FEWVIT_TEST_DEVICE_PANIC";
    if device::find(DeviceName::Wgpu(0)).is_err() {
        return;
    }
    if std::env::var_os(CHILD).is_none() {
        let name = "a_panic_on_a_devices_thread_fails_every_later_read";
        let program = std::env::current_exe().expect("this program");
        let child =
            std::process::Command::new(program).args(["--exact", name]).env(CHILD, "1").output();
        let child = child.expect("runs");
        assert!(child.status.success(), "{}", String::from_utf8_lossy(&child.stdout));
        return;
    }
    let device = device::open(DeviceName::Wgpu(0)).expect("opens");
    let two = || device::read(Tensor::<1>::ones([4], &device) * 2.0);
    assert_eq!(two().expect("it works"), [2.0; 4]);
    // As cubecl's threads are called, which catch their panics like this one's.
    let thread = std::thread::Builder::new().name("DSD-3-0".to_owned());
    thread.spawn(|| panic!("planted")).expect("a thread").join().expect_err("it panics");
    let error = two().expect_err("not to be believed any more");
    assert_eq!(error.exit_code(), 4);
    let text = error.to_string();
    assert!(text.contains("planted") && text.contains("the last checkpoint is kept"), "{text}");
}

#[test]
fn too_large_a_tensor_is_an_error_and_no_hang() {
    let Some(device) = device() else { return };
    let huge = || Tensor::<1>::zeros([1usize << 40], &device) + 1.0;
    let error = device::watched(huge).and_then(device::read).expect_err("too large");
    assert_eq!(error.exit_code(), 4);
    assert!(error.to_string().contains("can't allocate"), "{error}");
    assert_eq!(values(Tensor::<1>::ones([4], &device)), [1.0; 4], "it is there for others");
}
