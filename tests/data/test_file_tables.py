import pytest

from vitreous.data.collection import ROLES, read_collection
from vitreous.data.tables import ROLE_WORDS, csv_rows, parquet_rows
from vitreous.errors import ConfigError


@pytest.mark.parametrize("divider", [",", ";", "\t"])
def test_csv_rows_by_column_whatever_divides_them(tmp_path, divider):
    path = tmp_path / "t.csv"
    lines = [("image", " label "), ("a b.png", "ñ"), ("", ""), ("c.png", "")]
    text = "\r\n".join(divider.join(line) for line in lines)
    path.write_bytes(b"\xef\xbb\xbf" + text.encode())
    assert csv_rows(path) == [{"image": "a b.png", "label": "ñ"}, {"image": "c.png", "label": ""}]


def test_cells_beyond_the_columns_are_refused_unless_they_are_empty(tmp_path):
    path = tmp_path / "t.csv"
    path.write_text("image,labels\na.png,forest,\nb.png,forest,water\n\nc.png,'x',y\n")
    with pytest.raises(ConfigError, match="2 columns in line 3, line 5") as caught:
        csv_rows(path)
    assert "quotes" in caught.value.fix
    path.write_text('image,labels\na.png,forest,\nb.png,"forest,water"\n')
    assert [row["labels"] for row in csv_rows(path)] == ["forest", "forest,water"]


@pytest.mark.parametrize("head", ["scene,label,label", "scene,label, Label "])
def test_columns_of_one_name_are_refused(tmp_path, head):
    path = tmp_path / "t.csv"
    path.write_text(f"{head}\na.png,x,y\n")
    with pytest.raises(ConfigError, match="several columns named label"):
        csv_rows(path)


def test_parquet_rows_have_no_geometry(tmp_path):
    pyarrow = pytest.importorskip("pyarrow")
    parquet = pytest.importorskip("pyarrow.parquet")
    table = pyarrow.table({"image": ["a"], "labels": [["x", "y"]], "geometry": [b"\x01"]})
    parquet.write_table(table, tmp_path / "t.parquet")
    assert parquet_rows(tmp_path / "t.parquet") == [{"image": "a", "labels": ["x", "y"]}]


def test_tables_of_scenes_and_of_images_know_the_same_roles(tmp_path):
    (tmp_path / "scenes.csv").write_text("scene,role\na.tif,training\nb.tif,dev\n")
    assert len(read_collection(str(tmp_path / "scenes.csv")).entries) == 2
    assert set(ROLES) == set(ROLE_WORDS) and len(set(ROLES.values())) == 3
