"""The verbs that use a trained recognizer: evaluate, enrol, identify. See `commands.py`."""

from __future__ import annotations

from pathlib import Path

from jsonargparse import ArgumentParser, Namespace

from sparface.commands import RECOGNIZER


def pair_options(parser: ArgumentParser) -> None:
    """Options that say which pairs of faces to compare."""
    parser.add_argument("--checkpoint", type=Path, required=True, help=RECOGNIZER)
    parser.add_argument("--pairs", type=Path, help="pairs file in the format of LFW, CALFW or CPLFW")
    parser.add_argument("--photos", type=Path, help="folder of the pairs' photos; alignments are cached")
    parser.add_argument(
        "--shards", type=Path, help="shard set of the pairs' faces; without --pairs, pairs are drawn from it"
    )


def verification_options(parser: ArgumentParser) -> None:
    pair_options(parser)
    purify_option(parser)
    parser.add_argument("--json", type=Path, help="JSON file for the results")


def purify_option(parser: ArgumentParser) -> None:
    parser.add_argument(
        "--purify",
        default="",
        metavar="RUN",
        help="clean all faces first: run of a purifier, or jpeg:QUALITY, blur:PIXELS, tv:WEIGHT",
    )


def evaluate_verification(a: Namespace) -> int:
    """Measure verification (same person or not) on pairs of faces: accuracy, AUC, EER and TAR."""
    from sparface.evaluation.verification import evaluate_verification as run
    from sparface.evaluation.verification import summary

    faces = {"pairs": a.pairs, "photos": a.photos, "shards": a.shards}
    print(summary(run(a.checkpoint, **faces, purify=a.purify, json_out=a.json)))
    return 0


def identify_options(parser: ArgumentParser) -> None:
    from sparface.evaluation.settings import IdentifySettings
    from sparface.settings import add_fields

    parser.add_argument("--checkpoint", type=Path, required=True, help=RECOGNIZER)
    parser.add_argument("--shards", type=Path, required=True, help="shard set of gallery and probes")
    parser.add_argument(
        "--conditions",
        type=Path,
        help="CSV with columns face,condition; the condition `gallery` names what may be enrolled",
    )
    add_fields(parser, IdentifySettings)
    purify_option(parser)
    parser.add_argument("--json", type=Path, help="JSON file for the results")


def evaluate_identification(a: Namespace) -> int:
    """Measure identification (who is it) against a gallery: rank 1, TAR at FAR, rejection of strangers."""
    from sparface.evaluation.identify import evaluate_identification as run
    from sparface.evaluation.identify import summary
    from sparface.evaluation.settings import IdentifySettings
    from sparface.settings import filled

    settings = filled(IdentifySettings(), a)
    document = run(
        a.checkpoint,
        a.shards,
        conditions=a.conditions,
        settings=settings,
        purify=a.purify,
        json_out=a.json,
    )
    print(summary(document))
    return 0


def robustness_options(parser: ArgumentParser) -> None:
    from sparface.evaluation.settings import RobustnessSettings
    from sparface.settings import add_fields

    pair_options(parser)
    add_fields(parser, RobustnessSettings)
    purify_option(parser)
    parser.add_argument("--generator", type=Path, help="folder of a sparring run, for the attack trained")
    parser.add_argument("--surrogate", type=Path, help=f"aim the attacks at this one instead: {RECOGNIZER}")
    parser.add_argument("--json", type=Path, help="JSON file for the results")


def evaluate_robustness(a: Namespace) -> int:
    """Measure verification under attacks on one face of each pair, over several strengths."""
    from sparface.evaluation.attacked import evaluate_robustness as run
    from sparface.evaluation.robustness import summary
    from sparface.evaluation.settings import RobustnessSettings
    from sparface.settings import filled

    document = run(
        a.checkpoint,
        pairs=a.pairs,
        photos=a.photos,
        shards=a.shards,
        settings=filled(RobustnessSettings(), a),
        generator=a.generator,
        surrogate=a.surrogate,
        purify=a.purify,
        json_out=a.json,
    )
    print(summary(document))
    return 0


def detection_options(parser: ArgumentParser) -> None:
    from sparface.evaluation.settings import RobustnessSettings
    from sparface.settings import add_fields

    pair_options(parser)
    add_fields(parser, RobustnessSettings)
    purify_option(parser)
    parser.add_argument("--generator", type=Path, help="folder of a sparring run, for the attack trained")
    parser.add_argument("--json", type=Path, help="JSON file for the results")


def evaluate_detection(a: Namespace) -> int:
    """Measure whether what a purifier changes tells attacked faces from others."""
    from sparface.evaluation.detection import evaluate_detection as run
    from sparface.evaluation.detection import summary
    from sparface.evaluation.settings import RobustnessSettings
    from sparface.settings import filled

    settings = filled(RobustnessSettings(), a)
    faces = {"pairs": a.pairs, "photos": a.photos, "shards": a.shards}
    document = run(a.checkpoint, a.purify, **faces, settings=settings, generator=a.generator, json_out=a.json)
    print(summary(document))
    return 0


def quality_options(parser: ArgumentParser) -> None:
    parser.add_argument("--checkpoint", type=Path, required=True, help=f"the judge: {RECOGNIZER}")
    parser.add_argument("--shards", type=Path, required=True, help="set of made faces")
    parser.add_argument("--sources", type=Path, required=True, help="set that they were made from")
    parser.add_argument("--faces", type=int, default=5000, help="made faces to measure, spread over the set")
    parser.add_argument("--json", type=Path, help="JSON file for the results")


def evaluate_quality(a: Namespace) -> int:
    """Measure made faces against their sources: SSIM, PSNR, identity kept, Fréchet distance, precision
    and recall."""
    from sparface.evaluation.quality import evaluate_quality as run
    from sparface.evaluation.quality import summary

    print(summary(run(a.checkpoint, a.shards, a.sources, faces=a.faces, json_out=a.json)))
    return 0


def memorisation_options(parser: ArgumentParser) -> None:
    parser.add_argument("--checkpoint", type=Path, required=True, help=f"the judge: {RECOGNIZER}")
    parser.add_argument("--shards", type=Path, required=True, help="set of made faces")
    parser.add_argument("--training", type=Path, required=True, help="set that their maker was trained on")
    parser.add_argument(
        "--held_out", type=Path, required=True, help="set of other photos, best of the same people"
    )
    parser.add_argument("--faces", type=int, default=5000, help="faces to measure, spread over each set")
    parser.add_argument("--sheet", type=Path, help="picture of the most alike pairs to write (.png)")
    parser.add_argument("--json", type=Path, help="JSON file for the results")


def evaluate_memorisation(a: Namespace) -> int:
    """Measure whether made faces are copies of training faces, compared with photos that are not."""
    from sparface.evaluation.memorisation import evaluate_memorisation as run
    from sparface.evaluation.memorisation import summary

    sets = (a.shards, a.training, a.held_out)
    print(summary(run(a.checkpoint, *sets, faces=a.faces, sheet=a.sheet, json_out=a.json)))
    return 0


def membership_options(parser: ArgumentParser) -> None:
    parser.add_argument("--checkpoint", type=Path, required=True, help=f"what is attacked: {RECOGNIZER}")
    parser.add_argument("--members", type=Path, required=True, help="set that it was trained on, or a part")
    parser.add_argument("--others", type=Path, required=True, help="set that it was not trained on")
    parser.add_argument("--shadows", type=Path, nargs="+", default=[], help="runs that were trained like it")
    parser.add_argument("--shadow_sets", type=Path, nargs="+", default=[], help="the set of each of them")
    parser.add_argument("--json", type=Path, help="JSON file for the results")


def evaluate_membership(a: Namespace) -> int:
    """Measure whether a recognizer betrays which faces it was trained on."""
    from sparface.evaluation.membership import evaluate_membership as run
    from sparface.evaluation.membership import summary

    shadows = {"shadows": a.shadows, "shadow_sets": a.shadow_sets}
    print(summary(run(a.checkpoint, a.members, a.others, **shadows, json_out=a.json)))
    return 0


def classification_options(parser: ArgumentParser) -> None:
    parser.add_argument("--checkpoint", type=Path, required=True, help="folder of a run of a classifier")
    parser.add_argument("--shards", type=Path, required=True, help="shard set with the label that it learned")
    parser.add_argument("--json", type=Path, help="JSON file for the results")


def evaluate_classification(a: Namespace) -> int:
    """Measure a classifier, such as one of expressions: accuracy, precision, recall, F1, calibration."""
    from sparface.evaluation.classification import evaluate_classification as run
    from sparface.evaluation.classification import summary

    print(summary(run(a.checkpoint, a.shards, json_out=a.json)))
    return 0


def enrol_options(parser: ArgumentParser) -> None:
    parser.add_argument("photos", type=Path, help="folder with one folder per person, or CSV path,identity")
    parser.add_argument("--checkpoint", type=Path, required=True, help=RECOGNIZER)
    parser.add_argument("--out", type=Path, required=True, help="gallery to write (.safetensors)")
    parser.add_argument("--already-cropped", action="store_true", help="photos are tight crops of one face")
    parser.add_argument(
        "--fpir", type=float, default=0.01, help="share of strangers' faces that may be given a name"
    )
    parser.add_argument(
        "--calibrate",
        type=Path,
        help="shard set of other people to set the threshold on; default: estimate it",
    )
    parser.add_argument("--threshold", type=float, help="cosine that a face must exceed to be named")
    parser.add_argument(
        "--covers",
        default="",
        help="enrol each photo a second time with drawn covers, separated by commas: sunglasses, scarf",
    )


def enrol(a: Namespace) -> int:
    """Make a gallery of people from their photos, for `identify`."""
    from sparface.gallery.enrol import enrol as run

    done = run(
        a.photos,
        a.checkpoint,
        a.out,
        already_cropped=a.already_cropped,
        calibrate=a.calibrate,
        threshold=a.threshold,
        fpir=a.fpir,
        covers=a.covers,
    )
    print(done)
    return 0


def gallery_options(parser: ArgumentParser) -> None:
    parser.add_argument("photos", type=Path, nargs="+", help="photos to name people on")
    parser.add_argument("--gallery", type=Path, required=True, help="gallery written by `sparface enrol`")
    parser.add_argument("--checkpoint", type=Path, help="the gallery's recognizer; default: where it was")
    parser.add_argument("--already-cropped", action="store_true", help="photos are tight crops of one face")


def identify(a: Namespace) -> int:
    """Name the people on photos, or say that they are unknown."""
    from sparface.gallery.identify import identify as run

    for answer in run(a.photos, a.gallery, recognizer=a.checkpoint, already_cropped=a.already_cropped):
        print(answer)
    return 0
