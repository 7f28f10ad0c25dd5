//! `fewvit doctor`: what this machine offers, and what to do where that is too little.

use std::fs;
use std::io::Write;
use std::path::{Path, PathBuf};
use std::process::Command;

use serde::Serialize;

use crate::data::cache::kept;
use crate::engine::device::{self, Adapter, Card};
use crate::error::{Error, Result};
use crate::run::absolute;
use crate::words::bytes;

/// Whether something is as it should be.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize)]
#[serde(rename_all = "lowercase")]
pub enum Level {
    /// Good enough.
    Ok,
    /// Works worse than it could, or will not work.
    Warn,
}

/// One line of the examination.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub struct Finding {
    /// What was looked at.
    pub name: &'static str,
    /// Whether it is as it should be.
    pub level: Level,
    /// What was found.
    pub found: String,
    /// What to do about a warning, otherwise empty.
    pub advice: String,
}

/// What to look at.
#[derive(Clone, Copy, Debug)]
pub struct Patient<'a> {
    /// Instruction set of the kernels: as `fewvit_kernels::simd_level` names it.
    pub simd: &'a str,
    /// A data set that should be readable.
    pub data: Option<&'a Path>,
    /// Where runs would be written.
    pub output: &'a Path,
    /// Where decoded images stay for later runs.
    pub cache: Option<&'a Path>,
}

/// Memory that DeiT-Tiny with 2040 images of 256 px needs.
const MEMORY: u64 = 2_000_000_000;
/// Checkpoints and exports of a DeiT-Tiny run, with room to spare.
const DISK: u64 = 1_000_000_000;

/// Looks at the machine.
pub fn examine(patient: &Patient) -> Vec<Finding> {
    let mut findings = vec![
        ok(
            "version",
            format!(
                "fewvit {}, {} {}",
                env!("CARGO_PKG_VERSION"),
                std::env::consts::OS,
                std::env::consts::ARCH
            ),
        ),
        ok("cpu", cpu_model(&text("/proc/cpuinfo"))),
        cores(),
        simd(patient.simd),
        memory(available_memory()),
        disk(patient.output),
    ];
    findings.extend(patient.cache.filter(|folder| folder.is_dir()).map(decoded));
    findings.extend(devices(device::cards(), device::adapters()));
    findings.extend(patient.data.map(data));
    findings
}

/// Prints a line a finding, or a JSON object a line.
///
/// # Errors
/// `out` cannot be written.
pub fn print(findings: &[Finding], json: bool, out: &mut impl Write) -> Result<()> {
    let line = |f: &Finding| match (json, f.level) {
        (true, _) => serde_json::to_string(f).unwrap_or_default(),
        (false, Level::Ok) => format!("ok    {:<8} {}", f.name, f.found),
        (false, Level::Warn) => {
            format!("warn  {:<8} {}\n               {}", f.name, f.found, f.advice)
        }
    };
    let text: String = findings.iter().map(|f| line(f) + "\n").collect();
    super::recipe::print(out, &text)
}

fn ok(name: &'static str, found: String) -> Finding {
    Finding { name, level: Level::Ok, found, advice: String::new() }
}

fn warn(name: &'static str, found: String, advice: &str) -> Finding {
    Finding { name, level: Level::Warn, found, advice: advice.to_owned() }
}

/// Training images that earlier runs decoded.
fn decoded(folder: &Path) -> Finding {
    let bytes = bytes(kept::total(folder));
    ok("images", format!("{bytes} of decoded images in {}, safe to delete", folder.display()))
}

/// A file of /proc or /sys; empty where there is none.
fn text(path: &str) -> String {
    fs::read_to_string(path).unwrap_or_default()
}

fn cpu_model(cpuinfo: &str) -> String {
    let names = ["model name", "Model", "Hardware"];
    let field = |line: &str| {
        let (key, value) = line.split_once(':')?;
        names.contains(&key.trim()).then(|| value.trim().to_owned())
    };
    cpuinfo.lines().find_map(field).unwrap_or_else(|| "unknown model".to_owned())
}

fn cores() -> Finding {
    let ours = std::thread::available_parallelism().map_or(1, usize::from);
    let all = text("/proc/cpuinfo").lines().filter(|line| line.starts_with("processor")).count();
    match (ours, all.max(ours)) {
        (1, all) => warn(
            "cores",
            format!("1 of {all}"),
            "training uses all cores it may: allow more (container or job limits)",
        ),
        (ours, all) => ok("cores", format!("{ours} of {all}")),
    }
}

fn simd(level: &str) -> Finding {
    match level {
        "scalar" => warn(
            "simd",
            level.to_owned(),
            "kernels run without vector instructions, many times slower: unset FEWVIT_SIMD, and use a CPU with AVX2 or NEON",
        ),
        level => ok("simd", level.to_owned()),
    }
}

/// Memory of the machine, what is free of it, and what our control group may use, in bytes.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
struct Memory {
    total: u64,
    available: u64,
    limit: Option<u64>,
}

fn available_memory() -> Memory {
    let meminfo = text("/proc/meminfo");
    let field = |name: &str| {
        let line = meminfo.lines().find_map(|line| line.strip_prefix(name))?;
        line.trim().strip_suffix("kB")?.trim().parse::<u64>().ok().map(|kb| kb * 1024)
    };
    let total = field("MemTotal:").unwrap_or(0);
    let limits = cgroup_files(&text("/proc/self/cgroup")).into_iter();
    let limit = limits.filter_map(|path| text(&path).trim().parse().ok()).min();
    Memory {
        total,
        available: field("MemAvailable:").unwrap_or(0),
        // Without a limit, version 1 has a huge number.
        limit: limit.filter(|&bytes| bytes < total),
    }
}

/// Files that may hold our memory limit: our own group's and those above it, versions 2 and 1.
fn cgroup_files(groups: &str) -> Vec<String> {
    let mut files = vec!["/sys/fs/cgroup/memory/memory.limit_in_bytes".to_owned()];
    let own = groups.lines().find_map(|line| line.strip_prefix("0::")).unwrap_or("/");
    for group in Path::new(own).ancestors() {
        let group = group.to_string_lossy();
        files.push(format!("/sys/fs/cgroup{}/memory.max", group.trim_end_matches('/')));
    }
    files
}

fn memory(Memory { total, available, limit }: Memory) -> Finding {
    if total == 0 {
        return warn("memory", "unknown".to_owned(), "have 2 GB free for DeiT-Tiny");
    }
    let limited = limit.map_or(String::new(), |l| format!(", container limit {}", bytes(l)));
    let found = format!("{} free of {}{limited}", bytes(available), bytes(total));
    match available.min(limit.unwrap_or(u64::MAX)) < MEMORY {
        true => warn(
            "memory",
            found,
            "less than 2 GB: set a small data.cache_ram_gb, a smaller --img-size, fewer --threads",
        ),
        false => ok("memory", found),
    }
}

fn disk(output: &Path) -> Finding {
    let folder = existing(output);
    let place = folder.display();
    let advice = "choose another folder with --output";
    if !writable(&folder) {
        return warn("disk", format!("{place} cannot be written"), advice);
    }
    match df(&folder) {
        None => warn("disk", format!("unknown at {place}"), "have 1 GB free for a run"),
        Some(free) if free < DISK => {
            warn("disk", format!("{} free at {place}", bytes(free)), advice)
        }
        Some(free) => ok("disk", format!("{} free at {place}", bytes(free))),
    }
}

/// Trying is the only test that knows of owners, mounts and quotas.
fn writable(folder: &Path) -> bool {
    let probe = folder.join(format!(".fewvit-doctor-{}", std::process::id()));
    fs::File::create_new(&probe).and_then(|_| fs::remove_file(&probe)).is_ok()
}

/// The folder itself, or the closest one above that exists.
fn existing(path: &Path) -> PathBuf {
    absolute(path)
        .ancestors()
        .find(|folder| folder.is_dir())
        .unwrap_or(Path::new("/"))
        .to_path_buf()
}

/// Free bytes; the standard library has no call for it.
fn df(folder: &Path) -> Option<u64> {
    let output = Command::new("df").arg("-Pk").arg(folder).env("LC_ALL", "C").output().ok()?;
    parse_df(&String::from_utf8_lossy(&output.stdout))
}

/// The fourth column from the percentage backwards: names of devices may hold spaces.
fn parse_df(text: &str) -> Option<u64> {
    let words: Vec<_> = text.lines().nth(1)?.split_whitespace().collect();
    let percent = words.iter().position(|word| word.ends_with('%'))?;
    words.get(percent.checked_sub(1)?)?.parse::<u64>().ok().map(|kb| kb * 1024)
}

/// A line a card and an adapter, or what is missing for one; a binary that was built without is as it
/// should be.
fn devices(cards: Result<Vec<Card>>, adapters: Result<Vec<Adapter>>) -> Vec<Finding> {
    let adapter = |a: &Adapter| format!("{a}, tensors up to {}", bytes(a.largest_tensor));
    let mut findings = of_kind("cuda", cards, Card::to_string);
    findings.extend(of_kind("wgpu", adapters, adapter));
    findings
}

fn of_kind<T>(kind: &str, found: Result<Vec<T>>, describe: impl Fn(&T) -> String) -> Vec<Finding> {
    let line = |(i, d): (usize, &T)| ok("device", format!("{kind}:{i} {}", describe(d)));
    match found {
        Ok(found) => found.iter().enumerate().map(line).collect(),
        Err(e) => {
            let text = e.to_string();
            let (missing, advice) = text.split_once('\n').unwrap_or((&text, ""));
            let found = format!("no {kind}: {missing}");
            vec![match advice.trim().replace("\n  ", "; ").as_str() {
                "" => ok("device", found),
                advice => warn("device", found, advice),
            }]
        }
    }
}

fn data(path: &Path) -> Finding {
    let place = path.display();
    let read = match path.is_dir() {
        true => fs::read_dir(path).map(|entries| format!("{place}: {} entries", entries.count())),
        false => fs::File::open(path).map(|_| format!("{place}: a file")),
    };
    match read {
        Ok(found) if found.ends_with(": 0 entries") => {
            warn("data", found, "the folder is empty: put images in it, or check the path")
        }
        Ok(found) => ok("data", format!("{found}; `fewvit data check` looks inside")),
        Err(e) => warn(
            "data",
            format!("{place}: {e}"),
            "check the spelling of the path and its permissions",
        ),
    }
}

/// Refuses a data set that is not there, once all findings are printed.
///
/// # Errors
/// There is nothing at `data`.
pub fn check_there(data: &Path) -> Result<()> {
    match data.exists() {
        true => Ok(()),
        false => Err(Error::Data(format!(
            "{}: there is no such file or folder\n  check the spelling",
            data.display()
        ))),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::engine::device::Kind;

    #[test]
    fn named_data_that_is_not_there_is_an_error() {
        let folder = tempfile::tempdir().expect("a temporary folder");
        check_there(folder.path()).expect("there");
        let error = check_there(&folder.path().join("nix")).expect_err("not there");
        assert_eq!(error.exit_code(), 3);
    }

    #[test]
    fn every_warning_says_what_to_do() {
        let folder = tempfile::tempdir().expect("a temporary folder");
        let missing = folder.path().join("no/such");
        let cache = Some(folder.path());
        let mut patient = Patient { simd: "scalar", data: Some(&missing), output: &missing, cache };
        let images = |patient: &Patient| {
            examine(patient).into_iter().find(|f| f.name == "images").map(|f| f.found)
        };
        assert!(
            images(&patient).is_some_and(|found| found.starts_with("0 MB of decoded images in "))
        );
        patient.cache = Some(&missing);
        assert_eq!(images(&patient), None);
        let findings = examine(&patient);
        let devices = findings.iter().filter(|f| f.name == "device").count();
        assert!(devices >= 1);
        assert_eq!(findings.len() - devices, 7);
        for f in &findings {
            assert_eq!(f.level == Level::Warn, !f.advice.is_empty(), "{f:?}");
        }
        let level = |name| findings.iter().find(|f| f.name == name).map(|f| f.level);
        assert_eq!((level("simd"), level("data")), (Some(Level::Warn), Some(Level::Warn)));
        let mut out = Vec::new();
        print(&findings, true, &mut out).expect("in memory");
        for line in String::from_utf8(out).expect("text").lines() {
            let object: serde_json::Value = serde_json::from_str(line).expect("JSON");
            assert!(object["level"] == "ok" || object["level"] == "warn", "{line}");
        }
        assert_eq!(data(folder.path()).level, Level::Warn, "nothing is left behind");
        let nowhere = disk(Path::new("/proc")).found;
        assert_eq!(nowhere, "/proc cannot be written");
        fs::write(folder.path().join("a.jpg"), "x").expect("a file");
        assert_eq!(data(folder.path()).level, Level::Ok);
    }

    #[test]
    fn devices_are_listed_or_what_is_missing_for_them() {
        let [name, api, driver] = ["llvmpipe", "Vulkan", "Mesa 22"].map(str::to_owned);
        let kind = Kind::Software;
        let adapter = Adapter { name, kind, index: 0, api, driver, largest_tensor: 2_000_000_000 };
        let card = Card { name: "H100".to_owned(), memory: 80_000_000_000, capability: [9, 0] };
        let found = devices(Ok(vec![card]), Ok(vec![adapter]));
        let lines = [
            "cuda:0 H100 (80.0 GB, compute capability 9.0)",
            "wgpu:0 llvmpipe (software on the CPU, no GPU; Vulkan, Mesa 22), tensors up to 2.0 GB",
        ];
        assert_eq!(found, lines.map(|line| ok("device", line.to_owned())));
        let refused = |text: &str| Error::Device(text.to_owned());
        let found = devices(
            Err(refused("no feature")),
            Err(refused("no driver\n  install one\n  or none")),
        );
        let without = ok("device", "no cuda: no feature".to_owned());
        let advised = warn("device", "no wgpu: no driver".to_owned(), "install one; or none");
        assert_eq!(found, [without, advised]);
    }

    #[test]
    fn little_memory_warns_whether_used_up_or_limited() {
        let gb = 1_000_000_000;
        let of = |total, available, limit| memory(Memory { total, available, limit });
        assert_eq!(of(16 * gb, 8 * gb, None).found, "8.0 GB free of 16.0 GB");
        assert_eq!(of(16 * gb, 8 * gb, None).level, Level::Ok);
        assert_eq!(of(16 * gb, gb, None).level, Level::Warn);
        let limited = of(16 * gb, 8 * gb, Some(gb));
        assert_eq!(limited.level, Level::Warn);
        assert!(limited.found.ends_with("container limit 1.0 GB"), "{limited:?}");
        assert_eq!(of(0, 0, None).found, "unknown");
    }

    #[test]
    fn the_systems_tables_are_read() {
        let df = "Filesystem 1024-blocks Used Available Capacity Mounted on\n\
                  //host/my share 100000 40000 60000 40% /mnt/my disk\n";
        assert_eq!(parse_df(df), Some(60_000 * 1024));
        assert_eq!(parse_df("df: nothing\n"), None);
        let arm = "processor\t: 0\nBogoMIPS\t: 108.00\nModel\t\t: Raspberry Pi 4\n";
        assert_eq!(cpu_model(arm), "Raspberry Pi 4");
        assert_eq!(cpu_model("model name\t: AMD EPYC 9R14\n"), "AMD EPYC 9R14");
        assert_eq!(cpu_model(""), "unknown model");
        let files = cgroup_files("12:cpu:/x\n0::/user.slice/me\n");
        assert_eq!(files[1], "/sys/fs/cgroup/user.slice/me/memory.max");
        assert_eq!(
            files[2..],
            ["/sys/fs/cgroup/user.slice/memory.max", "/sys/fs/cgroup/memory.max"]
        );
    }
}
