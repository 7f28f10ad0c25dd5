//! Checkpoints that are broken or mean harm: an error that names the file, no program run, little
//! memory, no panic.

use std::fs;
use std::io::Write as _;
use std::path::{Path, PathBuf};

use fewvit::weights::import;

/// A string of a pickle.
fn text(value: &str) -> Vec<u8> {
    [b"X", &(value.len() as u32).to_le_bytes()[..], value.as_bytes()].concat()
}

/// An integer of a pickle.
fn integer(value: i64) -> Vec<u8> {
    [&b"\x8a\x08"[..], &value.to_le_bytes()].concat()
}

fn tuple(values: &[i64]) -> Vec<u8> {
    let values: Vec<u8> = values.iter().flat_map(|&v| integer(v)).collect();
    [b"(", &values[..], b"t"].concat()
}

/// A pickled dictionary with one item.
fn dictionary(key: &str, value: &[u8]) -> Vec<u8> {
    [b"\x80\x02}", &text(key)[..], value, b"s."].concat()
}

/// A tensor as pickles describe it: a view of the floats of storage 0.
fn tensor(stored: i64, shape: &[i64], stride: &[i64]) -> Vec<u8> {
    [
        &b"ctorch._utils\n_rebuild_tensor_v2\n(("[..],
        &text("storage"),
        b"ctorch\nFloatStorage\n",
        &text("0"),
        &text("cpu"),
        &integer(stored),
        b"tQK\x00",
        &tuple(shape),
        &tuple(stride),
        b"\x89ccollections\nOrderedDict\n)RtR",
    ]
    .concat()
}

/// What `torch.save` wrote before PyTorch 1.6: `pickle`, and storage 0 with `floats` values.
fn legacy(pickle: &[u8], floats: usize) -> Vec<u8> {
    [
        &b"\x80\x02\x8a\nl\xfc\x9cF\xf9 j\xa8P\x19.\x80\x02M\xe9\x03."[..],
        &dictionary("little_endian", b"\x88"),
        pickle,
        b"\x80\x02]",
        &text("0"),
        b"a.",
        &(floats as i64).to_le_bytes(),
        &vec![0; 4 * floats],
    ]
    .concat()
}

/// A zip archive with one deflated entry of `megabytes` zeros, and the size it claims.
fn zip_bomb(name: &str, megabytes: usize) -> Vec<u8> {
    let mut packed = flate2::write::DeflateEncoder::new(Vec::new(), flate2::Compression::best());
    let mut sum = flate2::Crc::new();
    let block = vec![b'N'; 1 << 20];
    for _ in 0..megabytes {
        packed.write_all(&block).expect("in memory");
        sum.update(&block);
    }
    let packed = packed.finish().expect("in memory");
    let sizes = [sum.sum(), packed.len() as u32, (megabytes << 20) as u32];
    let sizes: Vec<u8> = sizes.iter().flat_map(|v| v.to_le_bytes()).collect();
    let length = (name.len() as u16).to_le_bytes();
    // Version, flags, method 8, time and date.
    let method = [20, 0, 0, 0, 8, 0, 0, 0, 0, 0];
    let local =
        [b"PK\x03\x04", &method[..], &sizes, &length, &[0; 2], name.as_bytes(), &packed].concat();
    let central =
        [b"PK\x01\x02\x14\x00", &method[..], &sizes, &length, &[0; 16], name.as_bytes()].concat();
    let [at, size] = [local.len(), central.len()].map(|n| (n as u32).to_le_bytes());
    let end = [b"PK\x05\x06\0\0\0\0\x01\0\x01\0", &size[..], &at, &[0; 2]].concat();
    [local, central, end].concat()
}

fn safetensors(header: &str, length: u64) -> Vec<u8> {
    [&length.to_le_bytes()[..], header.as_bytes()].concat()
}

/// Files that must be refused, each with a part of the reason.
fn malformed() -> Vec<(&'static str, Vec<u8>, &'static str)> {
    let header = |shape: &str, to: u64| {
        let text =
            format!(r#"{{"pos_embed":{{"dtype":"F32","shape":{shape},"data_offsets":[0,{to}]}}}}"#);
        let length = text.len() as u64;
        safetensors(&text, length)
    };
    let tera = 1 << 40;
    let view = |stored, shape: &[i64], stride: &[i64]| {
        legacy(&dictionary("pos_embed", &tensor(stored, shape, stride)), 4)
    };
    vec![
        ("empty.pth", Vec::new(), "it is empty"),
        ("text.pth", b"version https://git-lfs.github.com/spec/v1\n".to_vec(), "not a PyTorch"),
        ("short.safetensors", b"\x08\0\0\0\0\0\0\0{".to_vec(), "broken safetensors"),
        ("header.safetensors", safetensors("{}", 1 << 60), "broken safetensors"),
        ("shape.safetensors", header("[4294967296,4294967296,4]", 16), "broken safetensors"),
        ("offset.safetensors", header("[1]", u64::MAX), "broken safetensors"),
        ("absent.safetensors", header("[1099511627776]", 4 << 40), "broken safetensors"),
        ("number.pth", b"\x80\x02K\x01.".to_vec(), "Expected a dictionary"),
        ("stop.pth", b"\x80\x02}".to_vec(), "pickle"),
        (
            "nested.pth",
            [&b"\x80\x02"[..], &[b']'; 99_999], &[b'a'; 99_998], b"."].concat(),
            "nesting",
        ),
        ("storage.pth", view(tera, &[tera], &[1]), "byte limit"),
        ("product.pth", view(4, &[tera, tera], &[0, 0]), "verflow"),
        ("outside.pth", view(4, &[1, 9, 16], &[144, 16, 1]), "needs 144 elements"),
        ("absent.pth", view(1280, &[1, 10, 128], &[1280, 128, 1]), "5120 bytes"),
        // Eight gigabytes of four floats, in a shape that would be resized.
        ("view.pth", view(4, &[1, (1 << 24) + 1, 128], &[0, 0, 0]), "more than the"),
        ("bomb.pth", zip_bomb("w/data.pkl", 64), "compressed archive"),
        ("zip.pth", zip_bomb("w/other", 1), "compressed archive"),
        // A list of nothing, an object a byte.
        ("many.pth", [&b"\x80\x02]("[..], &[b'N'; 5 << 20], b"e."].concat(), "too large"),
    ]
}

/// The command line on a file, its memory limited to twice what it needs for a good one.
fn embed(folder: &Path, weights: &Path) -> std::process::Output {
    let images = folder.join("images");
    if !images.exists() {
        fs::create_dir(&images).expect("made");
        let grey = image::RgbImage::from_pixel(16, 16, image::Rgb([99; 3]));
        grey.save(images.join("a.png")).expect("written");
    }
    let program = env!("CARGO_BIN_EXE_fewvit");
    // Of the two gigabytes one is what the allocator reserves at its start.
    let limited = "ulimit -v 2000000; exec \"$@\"";
    std::process::Command::new("sh")
        .args(["-c", limited, "sh", program, "embed"])
        .args([weights, &images])
        .args(["--model", "deit_micro_patch8_96", "--img-size", "24", "--threads", "1", "--out"])
        .arg(folder.join("features.npy"))
        .output()
        .expect("the shell starts")
}

/// What went to standard error.
fn stderr(output: &std::process::Output) -> String {
    String::from_utf8_lossy(&output.stderr).into_owned()
}

fn refused(output: &std::process::Output, name: &str, why: &str) {
    let stderr = stderr(output);
    assert_eq!(output.status.code(), Some(1), "{name}: {stderr}");
    assert!(stderr.contains(name) && stderr.contains(why), "{name}, {why:?}: {stderr}");
    assert!(!stderr.contains("panicked"), "{stderr}");
}

#[test]
fn a_malformed_file_is_refused_with_its_name_in_little_memory() {
    let folder = tempfile::tempdir().expect("a folder");
    for (name, bytes, why) in malformed() {
        let path = folder.path().join(name);
        fs::write(&path, bytes).expect("written");
        refused(&embed(folder.path(), &path), name, why);
    }
    let output = embed(folder.path(), &folder.path().join("images"));
    assert_eq!(output.status.code(), Some(2), "a folder: {}", stderr(&output));
    let output = embed(folder.path(), &folder.path().join("no.pth"));
    assert_eq!(output.status.code(), Some(2), "no file: {}", stderr(&output));
    assert!(stderr(&output).contains("no.pth does not exist"), "{}", stderr(&output));
}

#[test]
fn nothing_that_a_pickle_asks_for_is_run() {
    let folder = tempfile::tempdir().expect("a folder");
    let marker = folder.path().join("was-run");
    let command = text(&format!("touch {}", marker.display()));
    let call = [b"cposix\nsystem\n(", &command[..], b"tR"].concat();
    let alone = [&call[..], b"."].concat();
    let weights = dictionary("model", &tensor(4, &[4], &[1]));
    let weights = weights.strip_suffix(b".").expect("its end");
    let beside = legacy(&[weights, &text("args"), &call, b"s."].concat(), 4);
    for (name, bytes) in [("alone.pth", alone), ("beside.pth", beside)] {
        let path = folder.path().join(name);
        fs::write(&path, bytes).expect("written");
        refused(&embed(folder.path(), &path), name, "asks to run `posix.system`");
    }
    assert!(!marker.exists());
}

/// Every file that can be made from `bytes` by `damage` is taken or refused by name.
fn survives(name: &str, bytes: &[u8], damage: impl Fn(usize) -> Vec<u8>, times: usize) -> usize {
    let folder = tempfile::tempdir().expect("a folder");
    let path: PathBuf = folder.path().join(name);
    let outcome = |n: usize| {
        fs::write(&path, damage(n)).expect("written");
        let specs = [fewvit::nn::ParamSpec {
            key: "cls_token".to_owned(),
            shape: vec![1, 1, 16],
            range: 0..16,
            frozen: false,
        }];
        let outcome = import(&path, &specs, &mut [0.0; 16]);
        if let Err(error) = &outcome {
            assert!(
                error.to_string().contains(name) && error.exit_code() == 1,
                "{n} of {} bytes: {error}",
                bytes.len()
            );
        }
        outcome.is_err()
    };
    (0..times).filter(|&n| outcome(n)).count()
}

#[test]
fn cut_and_damaged_files_are_refused_or_read() {
    let golden = Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/golden");
    for name in ["import_zip.pth", "import_legacy.pth", "deit.safetensors"] {
        let bytes = fs::read(golden.join(name)).expect("a golden file");
        let times = 400;
        let cut = |n: usize| bytes[..bytes.len() * n / times].to_vec();
        assert_eq!(survives(name, &bytes, cut, times), times, "{name}: every cut is noticed");
        // The metadata is at both ends; a multiplier spreads the flips over it.
        let flipped = |n: usize| {
            let mut bytes = bytes.clone();
            let place = n * 7919 % 16_000;
            let place = if n.is_multiple_of(2) { place } else { bytes.len() - 1 - place };
            bytes[place] ^= 1 << (n % 7);
            bytes
        };
        survives(name, &bytes, flipped, 1000);
    }
}
