def test_conformance(ehr_check):
    ehr_check()
