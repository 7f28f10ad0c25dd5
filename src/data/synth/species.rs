//! The twelve species: what distinguishes them is how they are built, not their colour.

/// The outline of a petal.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Outline {
    /// Broad, with a round tip.
    Round,
    /// Lance-shaped, with a sharp tip.
    Pointed,
    /// Round, with a small nick in the tip.
    Notched,
    /// Narrow at the base, two round lobes at the tip.
    Heart,
    /// Parallel edges, blunt tip.
    Strap,
    /// A wedge with a fringed edge.
    Frilled,
    /// A lobe of a tube: neighbours touch, the mouth flares.
    Tubular,
}

/// What is drawn on a petal.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Marking {
    /// A gradient from base to tip only.
    Plain,
    /// A ring of the accent colour around the centre.
    Eye,
    /// Fine lines along the petal.
    Veined,
    /// One broad stripe down the middle.
    Stripe,
    /// A light edge.
    Edged,
    /// Freckles on the inner half.
    Spotted,
}

/// Petals (or sepals) that stand at one height around the centre.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Whorl {
    /// How many.
    pub petals: usize,
    /// Their outline.
    pub outline: Outline,
    /// Length in blossom radii.
    pub length: f32,
    /// Greatest half width in blossom radii.
    pub half_width: f32,
    /// Elevation in radians: 0 flat, positive a cup, negative drooping.
    pub lift: f32,
    /// Green sepals instead of petals.
    pub sepals: bool,
}

/// The middle of a blossom; lengths in blossom radii.
#[derive(Clone, Copy, Debug, PartialEq)]
pub enum Centre {
    /// Hidden by petals.
    Hidden,
    /// A dome of small florets of this radius and height.
    Dome(f32, f32),
    /// A flat star with five points of this radius.
    Star(f32),
    /// This many stamens of this length.
    Stamens(usize, f32),
}

/// How blossoms are arranged on the plant.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Inflorescence {
    /// One blossom.
    Single,
    /// A few blossoms on a branched stem.
    Cluster,
    /// Many small blossoms on rays from one point, an umbrella.
    Umbel,
    /// Many small blossoms all around a ball.
    Ball,
    /// Blossoms up a stem, buds at the top.
    Raceme,
}

/// One class of the set.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Species {
    /// Folder name: an invented botanical name in `snake_case`.
    pub name: &'static str,
    /// How a person recognises it.
    pub traits: &'static str,
    /// Arrangement of its blossoms.
    pub inflorescence: Inflorescence,
    /// Petals, outermost whorl first.
    pub whorls: &'static [Whorl],
    /// Middle of the blossom.
    pub centre: Centre,
    /// Drawn on the petals.
    pub marking: Marking,
    /// Colour morphs, sRGB: petal and accent. Every petal colour is shared with other species.
    pub morphs: [[[u8; 3]; 2]; 3],
}

const WHITE: [u8; 3] = [246, 244, 238];
const CREAM: [u8; 3] = [250, 232, 176];
const YELLOW: [u8; 3] = [250, 206, 40];
const ORANGE: [u8; 3] = [243, 132, 38];
const PINK: [u8; 3] = [243, 156, 182];
const MAGENTA: [u8; 3] = [206, 52, 136];
const RED: [u8; 3] = [204, 40, 44];
const VIOLET: [u8; 3] = [136, 84, 190];
const BLUE: [u8; 3] = [92, 116, 218];

/// A whorl of petals.
const fn petals(petals: usize, outline: Outline, size: [f32; 2], lift: f32) -> Whorl {
    Whorl { petals, outline, length: size[0], half_width: size[1], lift, sepals: false }
}

/// A whorl of pointed green sepals.
const fn sepals(count: usize, size: [f32; 2], lift: f32) -> Whorl {
    Whorl { sepals: true, ..petals(count, Outline::Pointed, size, lift) }
}

/// The classes, index = label.
pub const SPECIES: &[Species] = &[
    Species {
        name: "astrella_acuta",
        traits: "single; five pointed petals, a pale five-pointed star in the middle",
        inflorescence: Inflorescence::Single,
        whorls: &[petals(5, Outline::Pointed, [1.0, 0.36], 0.12)],
        centre: Centre::Star(0.34),
        marking: Marking::Veined,
        morphs: [[BLUE, WHITE], [PINK, CREAM], [WHITE, YELLOW]],
    },
    Species {
        name: "campanella_pendens",
        traits: "raceme of hanging five-lobed bells, buds at the top",
        inflorescence: Inflorescence::Raceme,
        whorls: &[petals(5, Outline::Tubular, [1.45, 0.6], 1.08)],
        centre: Centre::Stamens(3, 1.0),
        marking: Marking::Plain,
        morphs: [[BLUE, WHITE], [VIOLET, PINK], [WHITE, CREAM]],
    },
    Species {
        name: "conella_prairiensis",
        traits: "single; thirteen drooping strap petals around a tall spiny cone",
        inflorescence: Inflorescence::Single,
        whorls: &[petals(13, Outline::Strap, [0.86, 0.14], -0.42)],
        centre: Centre::Dome(0.34, 0.46),
        marking: Marking::Veined,
        morphs: [[MAGENTA, ORANGE], [YELLOW, RED], [PINK, ORANGE]],
    },
    Species {
        name: "cruciola_cordata",
        traits: "loose cluster of four-petalled crosses, petals heart-shaped",
        inflorescence: Inflorescence::Cluster,
        whorls: &[petals(4, Outline::Heart, [0.96, 0.5], 0.1)],
        centre: Centre::Stamens(4, 0.24),
        marking: Marking::Eye,
        morphs: [[VIOLET, WHITE], [YELLOW, ORANGE], [MAGENTA, WHITE]],
    },
    Species {
        name: "fimbrella_plena",
        traits: "single; three crowded rows of fringed petals, no centre to be seen",
        inflorescence: Inflorescence::Single,
        whorls: &[
            petals(8, Outline::Frilled, [1.0, 0.42], 0.1),
            petals(7, Outline::Frilled, [0.74, 0.34], 0.45),
            petals(5, Outline::Frilled, [0.48, 0.26], 0.8),
        ],
        centre: Centre::Hidden,
        marking: Marking::Edged,
        morphs: [[RED, PINK], [PINK, WHITE], [CREAM, WHITE]],
    },
    Species {
        name: "globella_densa",
        traits: "dense ball of small four-petalled florets",
        inflorescence: Inflorescence::Ball,
        whorls: &[petals(4, Outline::Round, [0.95, 0.5], 0.05)],
        centre: Centre::Dome(0.16, 0.1),
        marking: Marking::Plain,
        morphs: [[BLUE, WHITE], [RED, CREAM], [CREAM, ORANGE]],
    },
    Species {
        name: "lilanthe_maculata",
        traits: "single; six arching pointed petals with freckles, six long stamens",
        inflorescence: Inflorescence::Single,
        whorls: &[
            petals(3, Outline::Pointed, [1.0, 0.22], 0.28),
            petals(3, Outline::Pointed, [1.0, 0.3], 0.34),
        ],
        centre: Centre::Stamens(6, 0.62),
        marking: Marking::Spotted,
        morphs: [[ORANGE, RED], [WHITE, MAGENTA], [YELLOW, RED]],
    },
    Species {
        name: "margella_radiata",
        traits: "single; two dozen narrow rays in two rows around a flat disc",
        inflorescence: Inflorescence::Single,
        whorls: &[
            petals(12, Outline::Strap, [1.0, 0.085], 0.02),
            petals(12, Outline::Strap, [0.94, 0.085], 0.1),
        ],
        centre: Centre::Dome(0.3, 0.1),
        marking: Marking::Plain,
        morphs: [[WHITE, YELLOW], [VIOLET, YELLOW], [RED, YELLOW]],
    },
    Species {
        name: "octavia_dentata",
        traits: "single; eight broad petals with a nick in the tip around a small disc",
        inflorescence: Inflorescence::Single,
        whorls: &[petals(8, Outline::Notched, [1.0, 0.3], 0.08)],
        centre: Centre::Dome(0.2, 0.1),
        marking: Marking::Veined,
        morphs: [[MAGENTA, YELLOW], [ORANGE, YELLOW], [VIOLET, YELLOW]],
    },
    Species {
        name: "rosula_campestris",
        traits: "single; a cup of five round petals, many stamens",
        inflorescence: Inflorescence::Single,
        whorls: &[petals(5, Outline::Round, [0.98, 0.56], 0.3)],
        centre: Centre::Stamens(22, 0.34),
        marking: Marking::Eye,
        morphs: [[PINK, WHITE], [RED, YELLOW], [CREAM, YELLOW]],
    },
    Species {
        name: "trillora_vernalis",
        traits: "single; three broad striped petals over three narrow green sepals",
        inflorescence: Inflorescence::Single,
        whorls: &[sepals(3, [0.98, 0.22], -0.05), petals(3, Outline::Pointed, [1.0, 0.4], 0.18)],
        centre: Centre::Stamens(6, 0.24),
        marking: Marking::Stripe,
        morphs: [[WHITE, MAGENTA], [MAGENTA, WHITE], [YELLOW, ORANGE]],
    },
    Species {
        name: "umbrellina_minor",
        traits: "umbel: small five-petalled blossoms on rays from one point",
        inflorescence: Inflorescence::Umbel,
        whorls: &[petals(5, Outline::Notched, [0.95, 0.46], 0.1)],
        centre: Centre::Stamens(5, 0.3),
        marking: Marking::Plain,
        morphs: [[ORANGE, RED], [BLUE, WHITE], [CREAM, ORANGE]],
    },
];
