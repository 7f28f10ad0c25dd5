//! DINO's loss: Caron et al. 2021, *Emerging Properties in Self-Supervised Vision Transformers*.

use burn::tensor::Tensor;
use burn::tensor::activation::{log_softmax, softmax};

/// The teacher sees the two global crops, which are the student's first two views.
pub const TEACHER_VIEWS: usize = 2;

/// Self-distillation with multi-crop (eqs. 1 and 3): the mean over the samples and the
/// `2 views - 2` pairs of a teacher's view `t` and another view `v` of the student of
/// `-sum_k softmax((teacher_t - centre) / teacher_temp)_k log softmax(student_v / student_temp)_k`.
///
/// `student`: logits `[views * batch, dim]`, view-major, the global crops first; `teacher`: logits
/// `[2 * batch, dim]` of the global crops, always taken as constant; `centre`: `[dim]`. Returns
/// `[1]`. A uniform student gives chance, `ln(dim)`.
///
/// # Panics
/// If the shapes do not fit.
pub fn dino(
    student: Tensor<2>,
    teacher: Tensor<2>,
    centre: Tensor<1>,
    student_temp: f64,
    teacher_temp: f64,
) -> Tensor<1> {
    let ([rows, dim], [teacher_rows, _]) = (student.dims(), teacher.dims());
    let batch = teacher_rows / TEACHER_VIEWS;
    let views = rows / batch;
    assert!(rows == views * batch && views >= TEACHER_VIEWS, "every view of every sample");
    let targets = softmax((teacher - centre.unsqueeze()) / teacher_temp, 1).detach();
    let targets = targets.reshape([TEACHER_VIEWS, batch, dim]);
    let log_p = log_softmax(student / student_temp, 1).reshape([views, batch, dim]);
    // Summed over all other views at once: the sum over all views minus the view itself.
    let others = log_p.clone().sum_dim(0) - log_p.narrow(0, 0, TEACHER_VIEWS);
    let pairs = TEACHER_VIEWS * (views - 1);
    -(targets * others).sum() / (pairs * batch) as f64
}

/// The centre after a batch (eq. 4): `momentum * centre + (1 - momentum) * mean of teacher's rows`.
///
/// `centre`: `[dim]`, zero at the start; `teacher`: logits `[rows, dim]`, both global crops of the
/// whole batch; returns `[dim]`. The loss of the batch uses the centre from before.
pub fn updated_centre(centre: Tensor<1>, teacher: Tensor<2>, momentum: f64) -> Tensor<1> {
    centre * momentum + teacher.mean_dim(0).squeeze_dim::<1>(0) * (1.0 - momentum)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::loss::check::*;

    fn row(matrix: &Matrix) -> Tensor<1> {
        tensor(matrix).squeeze_dim(0)
    }

    fn distribution(logits: impl Iterator<Item = f64>) -> Vec<f64> {
        let exps: Vec<f64> = logits.map(f64::exp).collect();
        exps.iter().map(|e| e / exps.iter().sum::<f64>()).collect()
    }

    /// `[teacher, centre]` are constants, `temps` those of student and teacher.
    fn twin(student: &Matrix, [teacher, centre]: [&Matrix; 2], temps: (f64, f64)) -> f64 {
        let batch = teacher.len() / 2;
        let (mut total, mut terms) = (0.0, 0);
        for (t, teacher_row) in teacher.iter().enumerate() {
            let centred = teacher_row.iter().zip(&centre[0]).map(|(l, c)| (l - c) / temps.1);
            let target = distribution(centred);
            for (v, student_row) in student.iter().enumerate() {
                if v % batch == t % batch && v != t {
                    let p = distribution(student_row.iter().map(|l| l / temps.0));
                    total -= target.iter().zip(&p).map(|(t, p)| t * p.ln()).sum::<f64>();
                    terms += 1;
                }
            }
        }
        assert_eq!(terms, batch * (2 * (student.len() / batch) - 2));
        total / terms as f64
    }

    #[test]
    fn has_the_value_and_gradient_of_the_naive_twin() {
        for (batch, views, dim, temps) in [
            (1, 2, 3, (0.5, 0.2)),
            (3, 2, 5, (0.2, 0.1)),
            (2, 6, 8, (0.3, 0.1)),
            (4, 3, 2, (1.0, 1.0)),
        ] {
            let student = random(views * batch, dim, 1);
            let (teacher, centre) = (random(2 * batch, dim, 2), random(1, dim, 3));
            agrees_with_twin(
                &[student],
                |t| dino(t[0].clone(), tensor(&teacher), row(&centre), temps.0, temps.1),
                |m| twin(&m[0], [&teacher, &centre], temps),
            );
        }
    }

    #[test]
    fn has_the_value_and_gradient_of_pytorch() {
        agrees_with_pytorch("dino", &["student"], |t, case| {
            let [student_temp, teacher_temp] =
                ["student_temp", "teacher_temp"].map(|name| case[name][0][0]);
            let (teacher, centre) = (tensor(&case["teacher"]), row(&case["centre"]));
            dino(t[0].clone(), teacher, centre, student_temp, teacher_temp)
        });
        for case in golden_cases("dino") {
            let next = updated_centre(row(&case["centre"]), tensor(&case["teacher"]), 0.9);
            assert_close(&values(next), &case["next_centre"][0], 1e-6);
        }
    }

    #[test]
    fn a_uniform_student_gives_chance_and_equal_sides_the_entropy() {
        let device = crate::ops::cpu();
        let (batch, views, dim) = (3, 5, 7);
        let zero = || Tensor::<1>::zeros([dim], &device);
        let teacher = || tensor(&random(2 * batch, dim, 4));
        let uniform = Tensor::<2>::zeros([views * batch, dim], &device);
        let loss = dino(uniform, teacher(), zero(), 0.1, 0.04);
        assert_close(&values(loss), &[(dim as f64).ln()], 1e-5);
        // Student and teacher alike in all views: the cross-entropy is the entropy.
        let logits = random(1, dim, 5);
        let p = distribution(logits[0].iter().map(|l| l / 0.5));
        let entropy = -p.iter().map(|p| p * p.ln()).sum::<f64>();
        let [student, teacher] = [views, 2].map(|v| tensor(&logits).repeat_dim(0, v * batch));
        assert_close(&values(dino(student, teacher, zero(), 0.5, 0.5)), &[entropy], 1e-5);
    }

    #[test]
    fn subtracting_the_centre_undoes_a_constant_shift_of_the_teacher() {
        let (student, teacher, shift) = (random(8, 6, 6), random(4, 6, 7), random(1, 6, 8));
        let zero = Tensor::<1>::zeros([6], &crate::ops::cpu());
        let shifted = tensor(&teacher) + tensor(&shift);
        let plain = dino(tensor(&student), tensor(&teacher), zero, 0.1, 0.07);
        let centred = dino(tensor(&student), shifted, row(&shift), 0.1, 0.07);
        assert_close(&values(centred), &values(plain), 1e-4);
    }

    #[test]
    fn the_centre_approaches_a_constant_teacher_geometrically() {
        let teacher = random(1, 4, 9);
        let mut centre = Tensor::<1>::zeros([4], &crate::ops::cpu());
        for _ in 0..10 {
            centre = updated_centre(centre, tensor(&teacher).repeat_dim(0, 6), 0.9);
        }
        let expected: Vec<f64> = teacher[0].iter().map(|t| t * (1.0 - 0.9f64.powi(10))).collect();
        assert_close(&values(centre), &expected, 1e-5);
    }

    #[test]
    fn the_teacher_gets_no_gradient() {
        let device = crate::ops::cpu().autodiff();
        let leaf =
            |m: Matrix| Tensor::<2>::from_data(tensor(&m).into_data(), &device).require_grad();
        let (student, teacher) = (leaf(random(6, 4, 10)), leaf(random(4, 4, 11)));
        let zero = Tensor::<1>::zeros([4], &device);
        let gradients = dino(student.clone(), teacher.clone(), zero, 0.1, 0.04).backward();
        assert!(student.grad(&gradients).is_some() && teacher.grad(&gradients).is_none());
    }
}
