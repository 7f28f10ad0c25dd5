use super::*;
use crate::data::digest;
use crate::data::source::{open_noting, tests};

fn table(name: &str, content: &str) -> Result<Opened> {
    let images = ["i/1.jpg", "i/2.jpg", "i/3.jpg", "i/4.jpg"];
    let table = format!("{name}={content}");
    let root = tests::folder(&[&[table.as_str()], images.as_slice()].concat());
    open_noting(&root.path().join(name), &tests::config(), 1)
}

fn rows(opened: &Opened) -> Vec<(&str, Option<usize>, Split)> {
    let samples = opened.manifest.samples.iter();
    samples.map(|s| (s.id.as_str(), s.label, s.split)).collect()
}

#[test]
fn csv_tsv_and_json_lines_say_the_same() {
    let expected = [
        ("i/1.jpg", Some(0), Split::Val),
        ("i/3.jpg", Some(0), Split::Train),
        ("i/2.jpg", Some(1), Split::Train),
    ];
    let csv = "\u{feff}Split,File_Name,class\ntrain,i/2.jpg,\"10\"\ndev,./i/1.jpg, 9\ntraining,i/3.jpg,9\n";
    let tsv = csv.replace(',', "\t");
    let json = r#"{"path": "i/2.jpg", "label": 10, "split": "train"}
        {"path": "i/1.jpg", "label": 9, "split": "valid"}

        {"path": "i/3.jpg", "label": 9, "split": "train", "group": null}"#;
    for (name, content) in [("x.csv", csv), ("x.tsv", &tsv), ("x.jsonl", json)] {
        let opened = table(name, content).unwrap();
        assert_eq!(rows(&opened), expected, "{name}");
        assert_eq!(opened.manifest.classes, ["9", "10"], "numbers sort as numbers");
        assert_eq!(opened.manifest.split_origin, SplitOrigin::Given);
    }
}

/// A sample of a published set is taken as the set itself; `treatment` of a table that somebody
/// else wrote can be anything.
#[test]
fn own_tables_say_how_pixels_are_taken() {
    let own = |code: &str| {
        format!(
            "file,label,class,split,digest,treatment\ni/1.jpg,0,a,train,,\ni/2.jpg,1,b,test,,{code}\n"
        )
    };
    for (code, treatment) in [
        ("", Treatment::default()),
        ("published", Treatment::PUBLISHED),
        ("published-20", Treatment { cut_rows: 20, ..Treatment::PUBLISHED }),
    ] {
        assert_eq!(treatment.code(), code);
        let manifest = table("x.csv", &own(code)).unwrap().manifest;
        let treatments: Vec<_> = manifest.samples.iter().map(|s| s.treatment).collect();
        assert_eq!(treatments, [Treatment::default(), treatment]);
    }
    for code in ["publisher", "published-", "published-x", "-20"] {
        let text = table("x.csv", &own(code)).unwrap_err().to_string();
        assert!(text.contains(&format!("line 3: treatment `{code}` is none")), "{text}");
    }
    let of_others = "file,treatment,label\ni/1.jpg,placebo,a\ni/2.jpg,drug,b\n";
    let manifest = table("x.csv", of_others).unwrap().manifest;
    assert!(manifest.samples.iter().all(|s| s.treatment == Treatment::default()));
}

/// A folder with these files and four images in `i/`.
fn folder(files: &[&str]) -> Result<Opened> {
    let images = ["i/1.jpg", "i/2.jpg", "i/3.jpg", "i/4.jpg"];
    let root = tests::folder(&[files, images.as_slice()].concat());
    open_noting(root.path(), &tests::config(), 1)
}

#[test]
fn names_of_classes_that_take_more_than_a_line_are_refused() {
    let refused = |name: &str, content: &str| {
        let error = table(name, content).unwrap_err();
        assert_eq!(error.exit_code(), 3);
        error.to_string()
    };
    let csv = |odd: &str| format!("file,label\ni/1.jpg,\"{odd}\"\ni/2.jpg,b\ni/3.jpg,\"{odd}\"\n");
    let text = refused("x.csv", &csv("line\nbreak"));
    assert!(text.contains("table x.csv: 1 class with a line break"), "{text}");
    assert!(text.contains("\"line\\nbreak\"\n  change the labels in the table"), "{text}");
    for odd in ["a\tb", "a\u{1b}[31mb", "a\u{85}b", "a\u{2028}b"] {
        let text = refused("x.csv", &csv(odd));
        assert!(text.contains(&format!("{odd:?}")) && !text.contains(odd), "{text}");
    }
    let json = r#"[{"path": "i/1.jpg", "label": "a\u0000"}, {"path": "i/2.jpg", "label": "b"}]"#;
    assert!(refused("x.json", json).contains(r#""a\0""#));
    let names = "class_names.csv=label,name\n1,\"two\nlines\"\n2,b\n";
    let error = folder(&["index.csv=file,label\ni/1.jpg,1\ni/2.jpg,2\n", names]).unwrap_err();
    assert!(error.exit_code() == 3 && error.to_string().contains(r#""two\nlines""#), "{error}");
    let odd_and_harmless = table("x.csv", &csv("<b> `a` \u{a0}ü")).unwrap();
    assert_eq!(odd_and_harmless.manifest.classes.len(), 2);
}

#[test]
fn a_table_in_the_folder_counts_before_its_folders() {
    let opened = folder(&["metadata.csv=file_name\ni/1.jpg\n", "j/1.jpg"]).unwrap();
    assert_eq!(rows(&opened), [("i/1.jpg", None, Split::Train)]);
    assert_eq!(opened.manifest.split_origin, SplitOrigin::Unlabelled);
    assert_eq!(opened.describe(), "table metadata.csv, no labels, 1 image");
    assert!(opened.warnings[0].starts_with("not in the table, left out: 4 images: i/2.jpg, "));
    for faulty in ["file;label\ni/1.jpg;a\ni/2.jpg;b;c\n", "id,weight\n1,2\n", "\0"] {
        let error = folder(&[&format!("index.csv={faulty}"), "j/1.jpg"]).unwrap_err();
        assert_eq!(error.exit_code(), 3);
        assert!(error.to_string().contains("index.csv"), "{error}");
    }
    let opened = folder(&["weights.csv=species,weight\n1,2\n", "j/1.jpg"]).unwrap();
    assert_eq!(opened.manifest.classes, ["i", "j"], "a table of something else");
    assert_eq!(opened.warnings[1], "not used: 1 table: weights.csv");
    let predicted = "p.csv=file,label,predicted,confidence,correct,top5\ni/1.jpg,a,a,1,true,\n";
    assert_eq!(folder(&[predicted, "j/1.jpg"]).unwrap().manifest.classes, ["i", "j"]);
}

#[test]
fn what_could_be_one_of_two_tables_is_refused() {
    let one = "file,label\ni/1.jpg,a\ni/2.jpg,b\n";
    let error = |names: &[&str]| {
        let files: Vec<String> = names.iter().map(|name| format!("{name}={one}")).collect();
        let files: Vec<&str> = files.iter().map(String::as_str).collect();
        folder(&files).unwrap_err().to_string()
    };
    assert!(error(&["index.csv", "metadata.csv"]).contains("both describe the images"));
    assert!(error(&["my.csv"]).contains("my.csv names images and what they are"));
    let of_splits =
        ["train.csv=file,label\ni/1.jpg,a\ni/2.jpg,b\n", "test.csv=label;image\nb;i/3.jpg\n"];
    let opened = folder(&of_splits).unwrap();
    let expected = [
        ("i/1.jpg", Some(0), Split::Train),
        ("i/2.jpg", Some(1), Split::Train),
        ("i/3.jpg", Some(1), Split::Test),
    ];
    assert_eq!(rows(&opened), expected);
    let competition = [of_splits[0], "test.csv=image\ni/3.jpg\n"];
    let opened = folder(&competition).unwrap();
    assert_eq!(rows(&opened), expected[..2]);
    assert_eq!(opened.manifest.split_origin, SplitOrigin::Made, "there is nothing else to test on");
    assert!(opened.warnings.iter().any(|w| w == "no labels in test.csv: 1 image left out"));
    let opened = folder(&of_splits).unwrap();
    assert!(
        opened.describe().starts_with("table test.csv + train.csv, 2 classes, 2 train + 1 test")
    );
}

#[test]
fn columns_go_by_many_names() {
    for header in [
        "file_name,label",
        "image_path,class",
        "path,class_name",
        "file,category",
        "ImageName,ClassName",
        "IMG_PATH,LabelID",
        "FileName,Label",
        "Image Path,species",
        "image,target",
        "img,breed",
        "filepath,Class",
        "id,label_name",
    ] {
        let header = header.replace("FileName", "filename");
        let opened = table("x.csv", &format!("{header}\ni/1.jpg,a\ni/2.jpg,b\n")).unwrap();
        assert_eq!(opened.manifest.classes, ["a", "b"], "{header}");
    }
    for split in ["split", "set", "Subset", "partition"] {
        let text = format!("file,label,{split}\ni/1.jpg,a,Train\ni/2.jpg,b,TESTING\n");
        let opened = table("x.csv", &text).unwrap();
        assert_eq!(opened.manifest.split_origin, SplitOrigin::Given, "{split}");
    }
    let folds = table("x.csv", "file,label,fold\ni/1.jpg,a,1\ni/2.jpg,a,2\n").unwrap();
    assert_eq!(folds.manifest.split_origin, SplitOrigin::Made);
    assert!(folds.warnings[0].contains("the column fold holds no names of splits"));
}

#[test]
fn a_name_counts_before_a_number_and_must_agree_with_it() {
    for header in ["file,label,class", "file,class,label", "file,class_id,species"] {
        let named_last = header != "file,class,label";
        let row = |number: &str, name: &str| {
            if named_last { format!("{number},{name}") } else { format!("{name},{number}") }
        };
        let (tulip, rose) = (row("1", "tulip"), row("2", "rose"));
        let text = format!("{header}\ni/1.jpg,{rose}\ni/2.jpg,{tulip}\ni/3.jpg,{rose}\n");
        let opened = table("x.csv", &text).unwrap();
        assert_eq!(opened.manifest.classes, ["tulip", "rose"], "{header}");
    }
    let error = |text: &str| table("x.csv", text).unwrap_err().to_string();
    let text = error("file,label,class\ni/1.jpg,1,rose\ni/2.jpg,2,ox\ni/3.jpg,2,rose\n");
    assert!(text.contains("line 2") && text.contains("line 4"), "{text}");
    let text = error("file,label,class\ni/1.jpg,cat,rose\ni/2.jpg,cat,ox\n");
    assert!(text.contains("contradict each other"), "{text}");
    let floats = table("x.csv", "file,label\ni/1.jpg,10.0\ni/2.jpg,9.0\n").unwrap();
    assert_eq!(floats.manifest.classes, ["9", "10"]);
}

#[test]
fn multi_label_tables_are_refused_in_words() {
    for (name, text) in [
        ("x.jsonl", "{\"file\": \"i/1.jpg\", \"label\": [\"x\", \"z\"]}"),
        ("x.jsonl", "{\"file\": \"i/1.jpg\", \"label\": {\"x\": 1}}"),
        ("x.csv", "file,label\ni/1.jpg,x;z\ni/2.jpg,y;z\n"),
        ("x.csv", "file,label\ni/1.jpg,\"['x', 'z']\"\n"),
        ("x.csv", "file,x,y,z\ni/1.jpg,1,0,0\ni/2.jpg,0,1,1\n"),
    ] {
        let error = table(name, text).unwrap_err();
        assert_eq!(error.exit_code(), 3);
        assert!(error.to_string().contains("multi-label"), "{error}");
    }
}

#[test]
fn mistakes_are_named_with_their_line() {
    let error = |content: &str| table("x.csv", content).unwrap_err().to_string();
    assert!(error("colour,label\ni/1.jpg,a\n").contains("no column names the images"));
    assert!(
        error("")
            .ends_with("is empty; the first row must name the columns, such as file,label,split")
    );
    let held_out = "file,label,split\ni/1.jpg,a,train\ni/2.jpg,,test\n";
    let text = error(held_out);
    assert!(text.contains("line 3: no label to measure by; give it one, or the split"), "{text}");
    assert!(error("file,label,split\ni/1.jpg,a,tset\n").contains("line 2: split `tset`"));
    assert!(error("file,label,split\ni/1.jpg,a,test\ni/2.jpg,a,\n").contains("1 of 2 rows"));
    let text = error("file,label\ni/1.jpg,a\n./i/1.jpg,b\n");
    assert!(text.contains("line 3: i/1.jpg has another label in x.csv, line 2"), "{text}");
    let text = error("file,label,split\ni/1.jpg,a,train\ni\\1.jpg,a,test\n");
    assert!(text.contains("line 3: i/1.jpg has another split in x.csv, line 2"), "{text}");
    for (rows, said) in [
        ("i/1.jpg,a\ni/1.jpg,", "i/1.jpg has no label here and one in x.csv, line 2"),
        ("i/1.jpg,\ni/1.jpg,a", "i/1.jpg has a label here and none in x.csv, line 2"),
    ] {
        let text = error(&format!("file,label\n{rows}\n"));
        assert!(text.contains(&format!("line 3: {said}")), "{text}");
    }
    let text = error("file,label\ni/1.jpg,a\ni/9.jpg,b\n");
    assert!(text.contains("1 image that does not exist"), "{text}");
    assert!(text.contains("i/9.jpg (x.csv, line 3)"), "{text}");
    assert!(error("file,label\ni/1.jpg\n").contains("line 2 has 1 field"));
    assert!(error("file,label\n").contains("lists no images"));
    let twice = table("x.csv", "file,label\ni/1.jpg,a\ni/2.jpg,b\ni/1.jpg,a\n").unwrap();
    assert_eq!(twice.manifest.samples.len(), 2);
    assert!(twice.warnings[0].contains("i/1.jpg (x.csv, line 2 and x.csv, line 4)"));
    for text in ["file,label,predicted,confidence\ni/1.jpg,a,a,1\n", "file,f0,f1\ni/1.jpg,1,2\n"] {
        assert!(error(text).contains("give the images"));
    }
    let names = tests::folder(&[
        "x.csv=file,label\ni/1.jpg,1\ni/2.jpg,2\n",
        "class_names.csv=label,name\n1,crane\n2,crane\n",
        "i/1.jpg",
        "i/2.jpg",
    ]);
    let error = open_noting(&names.path().join("x.csv"), &tests::config(), 1).unwrap_err();
    assert!(error.to_string().contains("label 1 and label 2 `crane`"), "{error}");
}

#[test]
fn paths_of_other_systems_are_found() {
    let root = tests::folder(&["d/e\u{301}/1.jpg", "d/e\u{301}/2.jpg", "up.jpg"]);
    let inside = root.path().join("d/e\u{301}/2.jpg");
    let text = format!("file,label\n\u{e9}\\1.jpg,a\n{},b\n../up.jpg,c\n", inside.display());
    let table = root.path().join("d/x.csv");
    std::fs::write(&table, text).unwrap();
    let opened = open_noting(&table, &tests::config(), 1).unwrap();
    let ids: Vec<&str> = opened.manifest.samples.iter().map(|s| s.id.as_str()).collect();
    assert_eq!(ids, ["e\u{301}/1.jpg", "e\u{301}/2.jpg", "../up.jpg"]);
}

#[test]
fn groups_stay_on_one_side() {
    let table =
        table("x.csv", "file,label,group\ni/1.jpg,a,p\ni/2.jpg,a,p\ni/3.jpg,a,q\ni/4.jpg,b,q\n");
    let opened = table.unwrap();
    assert_eq!(opened.manifest.split_origin, SplitOrigin::MadeByGroup);
    let split = |i: usize| opened.manifest.samples[i].split;
    assert_eq!(split(0), split(1));
    assert_eq!(split(2), split(3));
}

#[test]
fn what_a_table_may_mean_is_said_or_refused() {
    let notes = |content: &str| table("x.csv", content).unwrap().warnings.join("; ");
    let error = |content: &str| table("x.csv", content).unwrap_err().to_string();
    let flag = error("file,label,is_valid\ni/1.jpg,a,True\ni/2.jpg,b,False\n");
    assert!(flag.contains("is_valid seems to say which images are held out"), "{flag}");
    let hidden = error("file,label,what\ni/1.jpg,a,train\ni/2.jpg,b,test\n");
    assert!(hidden.contains("the column what holds names of splits"), "{hidden}");
    let usage = table("x.csv", "file,label,Usage\ni/1.jpg,a,Training\ni/2.jpg,a,PublicTest\n");
    assert_eq!(rows(&usage.unwrap())[1], ("i/2.jpg", Some(0), Split::Test));
    let other = notes("file,label,species\ni/1.jpg,good,oak\ni/2.jpg,bad,oak\ni/3.jpg,bad,elm\n");
    assert!(other.contains("are those of the column label; not used: species"), "{other}");
    let missing = notes("file,label\ni/1.jpg,a\ni/2.jpg,NA\ni/3.jpg,NA\n");
    assert!(missing.contains("`NA` is taken for a class (2 rows, first in line 3)"), "{missing}");
    let straddling =
        "file,label,split,group\ni/1.jpg,a,train,p\ni/2.jpg,a,test,p\ni/3.jpg,a,train,q\n";
    assert!(notes(straddling).contains("1 group with images in training and held out"));
    let blanks = table("x.csv", "\"file\", \"label\"\ni/1.jpg, a\ni/2.jpg, \"a\"\n").unwrap();
    assert_eq!(blanks.manifest.classes, ["a"]);

    let root = tests::folder(&[
        "x.csv=file,label\ntrain/1.jpg,a\ntest/2.jpg,a\n",
        "train/1.jpg",
        "test/2.jpg",
    ]);
    let opened = open_noting(&root.path().join("x.csv"), &tests::config(), 1).unwrap();
    assert_eq!(rows(&opened)[0], ("test/2.jpg", Some(0), Split::Test));
    assert!(opened.warnings.iter().any(|w| w.contains("taken from the folders in the paths")));
}

#[test]
fn names_in_a_table_of_ours_are_as_they_are() {
    let names = ["red", "blue", "red,blue", "[1]", "7", "7.0", "a", "a "];
    let rows: Vec<String> = names
        .iter()
        .enumerate()
        .map(|(i, name)| format!("i/{i}.jpg,{i},\"{name}\",train,\n"))
        .collect();
    let content = format!("x.csv=file,label,class,split,digest\n{}", rows.concat());
    let images: Vec<String> = (0..names.len()).map(|i| format!("i/{i}.jpg")).collect();
    let files: Vec<&str> = std::iter::once(&content).chain(&images).map(String::as_str).collect();
    let root = tests::folder(&files);
    let opened = open_noting(&root.path().join("x.csv"), &tests::config(), 1).unwrap();
    assert_eq!(opened.manifest.classes, names);
}

#[test]
fn training_images_may_lack_a_label_and_it_is_said() {
    for (table, told) in [
        ("file,label\ni/1.jpg,a\ni/2.jpg,a\ni/3.jpg,b\ni/4.jpg,b\ni/5.jpg,\n", "drawn by fewvit"),
        (
            "file,label,split\ni/1.jpg,a,train\ni/2.jpg,a,test\ni/3.jpg,b,train\ni/4.jpg,b,test\n\
             i/5.jpg,,train\n",
            "3 train + 2 test images",
        ),
    ] {
        let images = ["i/1.jpg", "i/2.jpg", "i/3.jpg", "i/4.jpg", "i/5.jpg"];
        let root = tests::folder(&images);
        std::fs::write(root.path().join("index.csv"), table).unwrap();
        let opened = open_noting(root.path(), &tests::config(), 1).unwrap();
        let without: Vec<_> =
            opened.manifest.samples.iter().filter(|s| s.label.is_none()).collect();
        assert_eq!(without.len(), 1);
        assert_eq!((without[0].id.as_str(), without[0].split), ("i/5.jpg", Split::Train));
        let told_is = opened.describe();
        assert!(told_is.contains(told), "{told_is}");
        assert!(told_is.ends_with("; 2 of the 3 training images have a label"), "{told_is}");
    }
}

#[test]
fn a_table_with_the_columns_of_ours_but_no_digest_is_read_as_it_says() {
    let table = "x.csv=file,label,class,split\na/1.jpg,rose,0,train\na/2.jpg,tulip,1,test\n";
    let root = tests::folder(&[table, "a/1.jpg", "a/2.jpg"]);
    let opened = open_noting(&root.path().join("x.csv"), &tests::config(), 1).unwrap();
    assert_eq!(opened.manifest.classes, ["rose", "tulip"]);
}

#[test]
fn images_that_changed_since_a_run_listed_them_are_named() {
    let root = tests::folder(&["a/1.jpg", "a/2.jpg", "a/3.jpg"]);
    let content = std::fs::read(root.path().join("a/1.jpg")).unwrap();
    let same = Digest::of(&content);
    let other = Digest::of(b"before");
    let [same, other] = [&same, &other].map(Digest::as_str);
    let table = format!(
        "file,label,class,split,digest\na/1.jpg,0,a,train,{same}\na/2.jpg,0,a,train,{other}\na/3.jpg,0,a,test,\n"
    );
    std::fs::write(root.path().join("x.csv"), table).unwrap();
    let opened = open_noting(&root.path().join("x.csv"), &tests::config(), 1).unwrap();
    let samples: Vec<&Sample> = opened.manifest.samples.iter().collect();
    let mut contents = digest::digests(&samples, 1);
    let said = "1 image changed since the table was written (another digest): a/2.jpg";
    assert_eq!(opened.changed_note(&contents).as_deref(), Some(said));
    // What cannot be read is named elsewhere.
    contents[1] = None;
    assert_eq!(opened.changed_note(&contents), None);
}

#[test]
fn a_set_without_labels_leaves_out_what_its_table_holds_out() {
    let table = "x.csv=file,split\na/1.jpg,train\na/2.jpg,test\na/3.jpg,train\n";
    let root = tests::folder(&[table, "a/1.jpg", "a/2.jpg", "a/3.jpg"]);
    let opened = open_noting(&root.path().join("x.csv"), &tests::config(), 1).unwrap();
    let ids: Vec<_> = opened.manifest.samples.iter().map(|sample| &*sample.id).collect();
    assert_eq!(ids, ["a/1.jpg", "a/3.jpg"]);
    assert!(
        opened
            .warnings
            .iter()
            .any(|w| w.starts_with("1 image of the splits val and test left out"))
    );
}

#[test]
fn an_image_has_one_group_and_a_class_has_a_name() {
    let table = "x.csv=file,label,group\na/1.jpg,x,7\na/1.jpg,x,8\n";
    let root = tests::folder(&[table, "a/1.jpg"]);
    let error = open_noting(&root.path().join("x.csv"), &tests::config(), 1).unwrap_err();
    assert!(error.to_string().contains("another group"), "{error}");

    let names = "class_names.csv=label,name\n0,ash\n1,\n";
    let root =
        tests::folder(&[names, "x.csv=file,label\na/1.jpg,0\na/2.jpg,1\n", "a/1.jpg", "a/2.jpg"]);
    let error = open_noting(&root.path().join("x.csv"), &tests::config(), 1).unwrap_err();
    assert!(error.to_string().contains("line 3: label 1 has no name"), "{error}");
}

#[test]
fn images_of_a_table_without_labels_are_left_out_once() {
    let train = "train.csv=file,label\ni/1.jpg,a\ni/2.jpg,a\ni/3.jpg,b\ni/4.jpg,b\n";
    let images = ["i/1.jpg", "i/2.jpg", "i/3.jpg", "i/4.jpg", "i/5.jpg"];
    let root = tests::folder(&[&[train, "test.csv=file\ni/5.jpg\n"], &images[..]].concat());
    let opened = open_noting(root.path(), &tests::config(), 1).unwrap();
    let notes = opened.warnings.join("; ");
    assert!(notes.contains("no labels in test.csv: 1 image left out"), "{notes}");
    assert!(!notes.contains("not in the table"), "{notes}");
}
