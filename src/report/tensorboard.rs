//! Scalars for TensorBoard: an `events.out.tfevents.*` file of TFRecords, each one `Event` message.
//!
//! The three messages in use (`Event`, `Summary`, `SessionLog`) are encoded by hand; the numbers in
//! the code are the field numbers of TensorFlow's `event.proto` and `summary.proto`.

use std::fs::{File, OpenOptions};
use std::io::{self, Write};
use std::path::{Path, PathBuf};
use std::time::{SystemTime, UNIX_EPOCH};

use crate::error::{Error, Result};

/// An open event file.
#[derive(Debug)]
pub struct EventWriter {
    file: File,
    path: PathBuf,
}

impl EventWriter {
    /// Opens a new event file in `folder`; those of earlier runs stay.
    ///
    /// TensorBoard shows all files of a folder as one run and drops what earlier ones say about
    /// `first_step` and later steps, so a resumed run draws one line. It is the first step that is
    /// still to come: with the last one done, what was written about it would be lost.
    pub fn create(folder: &Path, first_step: u64) -> Result<Self> {
        let now = SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default().as_secs_f64();
        let (file, path) = new_file(folder, now as u64)?;
        let mut writer = Self { file, path };
        writer.write(&version(now))?;
        writer.write(&session_start(now, first_step))?;
        Ok(writer)
    }

    /// Writes one value; `wall_time` in seconds since 1970.
    pub fn scalar(&mut self, tag: &str, step: u64, wall_time: f64, value: f64) -> Result<()> {
        self.write(&scalar(tag, step, wall_time, value as f32))
    }

    /// One write a record, so that a reader never sees a part of it.
    fn write(&mut self, event: &[u8]) -> Result<()> {
        self.file.write_all(&record(event)).map_err(|e| Error::io("write", &self.path, e))
    }
}

/// A file that did not exist; TensorBoard reads a folder's files in the order of their names.
fn new_file(folder: &Path, seconds: u64) -> Result<(File, PathBuf)> {
    let mut attempt = 0;
    loop {
        let path = folder.join(format!("events.out.tfevents.{seconds:010}.fewvit.{attempt:03}"));
        match OpenOptions::new().write(true).create_new(true).open(&path) {
            Ok(file) => return Ok((file, path)),
            Err(e) if e.kind() == io::ErrorKind::AlreadyExists => attempt += 1,
            Err(e) => return Err(Error::io("create", &path, e)),
        }
    }
}

/// A TFRecord.
fn record(event: &[u8]) -> Vec<u8> {
    let length = (event.len() as u64).to_le_bytes();
    [&length[..], &masked_crc(&length).to_le_bytes(), event, &masked_crc(event).to_le_bytes()]
        .concat()
}

/// The event every file begins with.
fn version(wall_time: f64) -> Vec<u8> {
    let mut event = time(wall_time);
    bytes(&mut event, 3, b"brain.Event:2");
    event
}

/// The event that outdates what earlier files say about `step` and later ones.
fn session_start(wall_time: f64, step: u64) -> Vec<u8> {
    let mut status = Vec::new();
    varint(&mut status, 1, 1);
    let mut event = time(wall_time);
    varint(&mut event, 2, step);
    bytes(&mut event, 7, &status);
    event
}

/// The event of one value.
fn scalar(tag: &str, step: u64, wall_time: f64, value: f32) -> Vec<u8> {
    let mut entry = Vec::new();
    bytes(&mut entry, 1, tag.as_bytes());
    entry.push(2 << 3 | FIXED32);
    entry.extend(value.to_le_bytes());
    let mut summary = Vec::new();
    bytes(&mut summary, 1, &entry);
    let mut event = time(wall_time);
    varint(&mut event, 2, step);
    bytes(&mut event, 5, &summary);
    event
}

// Protobuf wire types.
const VARINT: u8 = 0;
const FIXED64: u8 = 1;
const BYTES: u8 = 2;
const FIXED32: u8 = 5;

/// The start of an event: its time, field 1.
fn time(seconds: f64) -> Vec<u8> {
    let mut event = vec![1 << 3 | FIXED64];
    event.extend(seconds.to_le_bytes());
    event
}

fn bytes(message: &mut Vec<u8>, field: u8, content: &[u8]) {
    message.push(field << 3 | BYTES);
    base128(message, content.len() as u64);
    message.extend(content);
}

fn varint(message: &mut Vec<u8>, field: u8, value: u64) {
    message.push(field << 3 | VARINT);
    base128(message, value);
}

fn base128(message: &mut Vec<u8>, mut value: u64) {
    while value >= 0x80 {
        message.push(value as u8 | 0x80);
        value >>= 7;
    }
    message.push(value as u8);
}

/// CRC-32C of `data`, rotated and shifted as the TFRecord format asks.
fn masked_crc(data: &[u8]) -> u32 {
    crc32c(data).rotate_right(15).wrapping_add(0xa282_ead8)
}

/// CRC-32C (Castagnoli), bit by bit: a few records an epoch need no table.
fn crc32c(data: &[u8]) -> u32 {
    let bit = |crc: u32| {
        if crc & 1 == 1 { crc >> 1 ^ 0x82f6_3b78 } else { crc >> 1 }
    };
    !data.iter().fold(!0, |crc, &byte| (0..8).fold(crc ^ u32::from(byte), |crc, _| bit(crc)))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn checksums_agree_with_rfc_3720() {
        assert_eq!(crc32c(b"123456789"), 0xe306_9283);
        assert_eq!(crc32c(&[0; 32]), 0x8a91_36aa);
        assert_eq!(crc32c(&[0xff; 32]), 0x62a8_ab43);
    }

    /// Printed by `tests/golden/report_events.py`.
    #[test]
    fn records_agree_with_tensorboard() {
        let golden = "1800000000000000a37f4b2209000000000000f83f1a0d627261696e2e4576656e743a322a28646c\
             100000000000000095fbfe1809000000000000f83f10ac023a020801713b788a2400000000000000\
             422b804d09000000000000024010ad022a160a140a0d707265747261696e2f6c6f7373150000e840\
             e01585f7";
        let events =
            [version(1.5), session_start(1.5, 300), scalar("pretrain/loss", 301, 2.25, 7.25)];
        let hex: String =
            events.iter().flat_map(|e| record(e)).map(|byte| format!("{byte:02x}")).collect();
        assert_eq!(hex, golden);
    }

    #[test]
    fn resuming_adds_a_file() {
        let folder = tempfile::tempdir().unwrap();
        for first_step in [0, 2] {
            let mut events = EventWriter::create(folder.path(), first_step).unwrap();
            events.scalar("loss", first_step + 1, 1e9, 0.5).unwrap();
        }
        let names = std::fs::read_dir(folder.path()).unwrap().map(|f| f.unwrap().file_name());
        let mut names: Vec<_> = names.collect();
        names.sort();
        assert!(
            names.len() == 2
                && names.iter().all(|n| n.to_string_lossy().starts_with("events.out.tfevents."))
        );
        let missing = EventWriter::create(&folder.path().join("none"), 0).unwrap_err().to_string();
        assert!(missing.contains("cannot create") && missing.contains("none"), "{missing}");
    }
}
