//! Times the sum of gradients over all processes, to tell what a network costs a step:
//! `mpirun -n 2 target/release/examples/all_reduce [PARAMETERS] [WORKERS]`.

use std::time::Instant;

use fewvit::engine::collective;

const REPEATS: usize = 15;

fn main() -> fewvit::Result<()> {
    let number = |i| std::env::args().nth(i).and_then(|text| text.parse().ok());
    let (len, workers): (usize, usize) = (number(1).unwrap_or(5_717_416), number(2).unwrap_or(1));
    let _job = collective::start()?;
    let ranks = collective::ranks();
    let threads =
        (std::thread::available_parallelism().map_or(1, usize::from) / ranks.local_size()).max(1);
    let mut own = vec![vec![1.0f32; len]; workers.max(1)];
    let mut arrived = Vec::new();
    let mut copy = vec![0.0f32; len];
    let (mut sums, mut copies, mut agreements) = (Vec::new(), Vec::new(), Vec::new());
    for _ in 0..REPEATS {
        let mut vectors: Vec<&mut [f32]> = own.iter_mut().map(|values| &mut values[..]).collect();
        ranks.agree(0)?;
        let start = Instant::now();
        ranks.all_reduce(&mut vectors, &mut arrived, threads)?;
        sums.push(start.elapsed().as_secs_f64());
        let start = Instant::now();
        copy.copy_from_slice(&own[0]);
        copies.push(start.elapsed().as_secs_f64());
        ranks.agree(0)?;
        let start = Instant::now();
        ranks.agree(1)?;
        agreements.push(start.elapsed().as_secs_f64());
        own.iter_mut().for_each(|values| values.fill(1.0));
    }
    if ranks.rank() == 0 {
        let [sum, copied, agreed] = [sums, copies, agreements].map(|mut times| {
            times.sort_by(f64::total_cmp);
            format!("{:.3} ms (fastest {:.3})", 1e3 * times[REPEATS / 2], 1e3 * times[0])
        });
        println!(
            "{} ranks x {workers} workers x {len} values, medians of {REPEATS}: sum {sum}, copy of \
             one vector {copied}, agreement {agreed}",
            ranks.size()
        );
    }
    Ok(())
}
