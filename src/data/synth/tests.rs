use super::*;

/// Mean colour of an image, 0 to 255.
fn mean(image: &Rgb8) -> [f64; 3] {
    let pixels = image.pixels.len() / 3;
    std::array::from_fn(|c| {
        image.pixels.iter().skip(c).step_by(3).map(|&x| f64::from(x)).sum::<f64>() / pixels as f64
    })
}

fn distance(a: &[f64], b: &[f64]) -> f64 {
    a.iter().zip(b).map(|(x, y)| (x - y).powi(2)).sum()
}

/// Test accuracy of assigning each image to the class with the nearest mean of `feature`.
fn nearest_mean_accuracy(
    manifest: &Manifest,
    images: &[Rgb8],
    feature: impl Fn(&Rgb8) -> Vec<f64>,
) -> f64 {
    let features: Vec<_> = images.iter().map(feature).collect();
    let mut means = vec![vec![0.0; features[0].len()]; SPECIES.len()];
    for i in manifest.indices(Split::Train) {
        let label = manifest.samples[i].label.unwrap();
        means[label].iter_mut().zip(&features[i]).for_each(|(m, x)| *m += x);
    }
    let per_class = (manifest.indices(Split::Train).len() / SPECIES.len()) as f64;
    means.iter_mut().flatten().for_each(|m| *m /= per_class);
    let test = manifest.indices(Split::Test);
    let right = test.iter().filter(|&&i| {
        let nearest = (0..means.len())
            .min_by(|&a, &b| {
                distance(&means[a], &features[i]).total_cmp(&distance(&means[b], &features[i]))
            })
            .unwrap();
        manifest.samples[i].label == Some(nearest)
    });
    right.count() as f64 / test.len() as f64
}

#[test]
fn an_image_depends_on_its_coordinates_only() {
    let image = render(3, 7, 5, 48);
    assert_eq!(image, render(3, 7, 5, 48));
    for other in [render(4, 7, 5, 48), render(3, 8, 5, 48), render(3, 7, 6, 48)] {
        assert_ne!(image, other);
    }
}

#[test]
fn every_pixel_is_painted() {
    for species in 0..SPECIES.len() {
        let image = render(species, 1, 0, 40);
        assert_eq!((image.width, image.height, image.pixels.len()), (40, 40, 4800));
        assert!(image.pixels.chunks_exact(3).all(|p| p != [0, 0, 0]), "{species} has holes");
        let spread = image.pixels.iter().max().unwrap() - image.pixels.iter().min().unwrap();
        assert!(spread > 80, "{species} is flat: {spread}");
    }
}

/// Nearest class means of the pixels beat chance (8.3%), but neither they nor colour solve the set.
#[test]
fn classes_differ_but_not_by_colour() {
    let (manifest, images) = generate(0, 48, 24, 24);
    let colour = nearest_mean_accuracy(&manifest, &images, |image| mean(image).to_vec());
    let pixels = nearest_mean_accuracy(&manifest, &images, |image| {
        image.pixels.iter().map(|&x| f64::from(x)).collect()
    });
    assert!(colour < 0.3, "colour alone reaches {colour:.3}");
    assert!((0.1..0.35).contains(&pixels), "raw pixels reach {pixels:.3}");
}

/// Colours of one species are found in others: no petal colour names a species.
#[test]
fn petal_colours_are_shared() {
    for species in SPECIES {
        for [petal, _] in species.morphs {
            let owners = SPECIES.iter().filter(|s| s.morphs.iter().any(|m| m[0] == petal));
            assert!(owners.count() >= 3, "{}: {petal:?}", species.name);
        }
    }
}

#[test]
fn names_are_sorted_and_fit_a_folder() {
    assert_eq!(SPECIES.len(), 12);
    assert!(SPECIES.is_sorted_by(|a, b| a.name < b.name));
    for species in SPECIES {
        assert!(species.name.chars().all(|c| c.is_ascii_lowercase() || c == '_'));
    }
}

#[test]
fn writes_the_folder_layout_and_never_over_something() {
    let folder = tempfile::tempdir().unwrap();
    let out = folder.path().join("flowers");
    let mut calls = Vec::new();
    write(&out, 3, 32, 2, 1, |done, total| calls.push((done, total))).unwrap();
    assert_eq!(calls, (1..=36).map(|i| (i, 36)).collect::<Vec<_>>());

    let (manifest, images) = generate(3, 32, 2, 1);
    assert_eq!(manifest.indices(Split::Train).len(), 24);
    assert_eq!(manifest.samples[24].id, "test/astrella_acuta/000.png");
    for (sample, image) in manifest.samples.iter().zip(&images) {
        let read = image::open(out.join(&sample.id)).unwrap().to_rgb8();
        assert_eq!(read.as_raw(), &image.pixels, "{}", sample.id);
    }
    let refused = write(&out, 3, 32, 2, 1, |_, _| {}).unwrap_err();
    assert!(matches!(&refused, Error::Usage(m) if m.contains("not empty")), "{refused}");
    let file = out.join(&manifest.samples[0].id);
    let before = std::fs::read(&file).unwrap();
    let refused = write(&file, 3, 32, 2, 1, |_, _| {}).unwrap_err();
    assert!(matches!(&refused, Error::Usage(m) if m.contains("is not a folder")), "{refused}");
    assert_eq!(std::fs::read(&file).unwrap(), before);
    assert!(matches!(write(&out, 3, 0, 2, 1, |_, _| {}), Err(Error::Usage(_))));
}
